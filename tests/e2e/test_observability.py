"""What a running service tells: its metrics against known requests, its log line by line, its spans at a real receiver."""

from __future__ import annotations

import gzip
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from ortserve.catalogue import CATALOGUE
from tests.packages import add_package, picture, write_profile
from tests.serving import Samples, Server, total, until

pytestmark = pytest.mark.e2e

PNG = {"content-type": "image/png"}
COLOURS = ("red", "green", "blue")


class Receiver:
    """An OTLP/HTTP receiver: keeps every span it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.requests = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        receiver.spans.extend(scope.spans)
                receiver.requests += 1
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: the test says what went wrong."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def of_trace(self, trace_id: str) -> list[Span]:
        """The spans of that trace that came so far."""
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def close(self) -> None:
        """End the receiver."""
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """One receiver for every service of this file."""
    running = Receiver()
    yield running
    running.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model `colours`."""
    folder = tmp_path_factory.mktemp("home")
    add_package(folder, "colours:1")
    return folder


def start(home: Path, folder: Path, receiver: Receiver, **sections: Any) -> Server:
    """A service of `colours` whose profile has these sections; it knows of the receiver whether it traces or not."""
    mine = write_profile(folder / "mine.yaml", batching={"max_batch_size": 4, "max_queue_size": 8}, **sections)
    return Server(home, env={"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "colours", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint})


@dataclass
class Told:
    """A service that tells everything, the answers to a known set of requests, and its metrics after them."""

    server: Server
    answers: list[httpx.Response]
    metrics: Samples = field(default_factory=dict)

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        return total(self.metrics, name, **labels)


@pytest.fixture(scope="module")
def told(home: Path, tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Told]:
    """JSON lines, access log and every request traced: asked for seven pictures and everything that can be wrong with one."""
    with start(
        home,
        tmp_path_factory.mktemp("told"),
        receiver,
        logging={"format": "json", "access_log": True},
        limits={"max_image_pixels": 10_000, "max_image_bytes": 50_000},
        tracing={"enabled": True, "sample_rate": 0.0},  # the caller's traceparent decides
    ) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:  # fmt: skip

        def post(content: bytes, path: str = "/classify", **headers: str) -> httpx.Response:
            return client.post(path, content=content, headers={**PNG, **headers})

        def batch(contents: Sequence[bytes]) -> httpx.Response:
            return client.post("/classify_batch", files=[("images", ("x.png", content, "image/png")) for content in contents])

        answers = [
            *(post(picture(colour)) for colour in COLOURS),
            batch([picture("red"), picture("blue"), b"no picture", picture("red"), picture("green")]),
            post(b"no picture", **{"x-request-id": "the-callers-own"}),
            post(picture("red")[:-20]),
            post(picture("red", size=200)),
            post(picture("red"), "/classify?top_k=9"),
            post(b"x" * 200_000),
            batch([picture("red")] * 9),
            client.post("/classify", content=b"x", headers={"content-type": "text/plain"}),
            client.get("/nowhere"),
            client.get("/models/cats"),
            client.delete("/classify"),
        ]
        yield Told(server, answers, server.metrics())


def test_the_known_requests_were_answered_as_they_should(told: Told) -> None:
    assert [answer.status_code for answer in told.answers] == [200] * 4 + [400, 400, 413, 422, 413, 413, 415, 404, 404, 405]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_every_metric_of_the_catalogue_is_shown(told: Told) -> None:
    suffix = {"histogram": "_count", "counter": "", "gauge": ""}
    elsewhere = ("_gpu_", "_tokens_")  # on machines with one; where texts are served
    wanted = {entry.name + suffix[entry.kind] for entry in CATALOGUE if not any(part in entry.name for part in elsewhere)}
    assert wanted <= {name for name, _ in told.metrics}


def test_what_is_not_in_the_catalogue_is_not_shown(told: Told) -> None:
    known = {entry.name + suffix for entry in CATALOGUE for suffix in ("", "_count", "_sum", "_bucket")}
    assert {name for name, _ in told.metrics} <= known


def test_the_metrics_of_known_requests_are_right(told: Told) -> None:
    pictures = 7  # three alone and four of the batch
    assert told.value("ortserve_request_duration_seconds_count") == pictures
    assert told.value("ortserve_decode_duration_seconds_count") == pictures
    assert told.value("ortserve_queue_duration_seconds_count") == pictures
    assert told.value("ortserve_batch_size_rows_sum") == pictures
    batches = told.value("ortserve_batch_size_rows_count")
    assert 4 <= batches <= pictures
    assert told.value("ortserve_inference_duration_seconds_count") == batches
    assert told.value("ortserve_batch_size_rows_bucket", le="4.0") == batches
    for stage in ("decode", "queue", "inference", "request"):
        assert told.value(f"ortserve_{stage}_duration_seconds_sum") > 0
    assert told.value("ortserve_request_duration_seconds_sum") >= told.value("ortserve_decode_duration_seconds_sum")


def test_refusals_and_unusable_pictures_are_counted_by_their_code(told: Told) -> None:
    counted = {
        (name.removeprefix("ortserve_"), dict(labels)["reason"]): number
        for (name, labels), number in told.metrics.items()
        if name in ("ortserve_refusals_total", "ortserve_decode_errors_total") and number
    }
    assert counted == {("decode_errors_total", "invalid_image"): 3, ("decode_errors_total", "image_too_large"): 1}


def test_requests_are_counted_by_route_and_status(told: Told) -> None:
    counted = {
        (dict(labels)["endpoint"], dict(labels)["http_response_code"]): number
        for (name, labels), number in told.metrics.items()
        if name == "bentoml_service_request_total" and dict(labels)["endpoint"] not in ("/readyz", "/metrics") and number
    }
    assert counted == {
        ("/classify", "200"): 3,
        ("/classify", "400"): 2,
        ("/classify", "405"): 1,
        ("/classify", "413"): 2,
        ("/classify", "415"): 1,
        ("/classify", "422"): 1,
        ("/classify_batch", "200"): 1,
        ("/classify_batch", "413"): 1,
        ("/models/{name}", "404"): 1,
        ("unmatched", "404"): 1,
    }
    assert told.value("bentoml_service_request_in_progress") == 1  # the scrape itself


def test_the_model_info_says_what_models_says(told: Told) -> None:
    facts = httpx.get(f"{told.server.base_url}/models").json()["models"][0]
    info = next(dict(labels) for name, labels in told.metrics if name == "ortserve_model_info")
    assert {key: info[{"name": "model"}.get(key, key)] for key in facts} == facts
    assert told.value("ortserve_provider_active_workers", provider=facts["provider"]) == 1
    assert told.value("ortserve_queue_size_rows") == told.value("ortserve_batches_in_flight") == 0


# --- log -------------------------------------------------------------------------------------------------------------


def lines(server: Server) -> list[dict[str, Any]]:
    """The log so far, each line read as the JSON object it must be."""
    return [json.loads(line) for line in server.log().splitlines()]


def test_every_line_of_the_parent_and_the_worker_is_a_json_object(told: Told) -> None:
    records = lines(told.server)
    assert all({"timestamp", "level", "logger", "message", "request_id"} <= record.keys() for record in records)
    messages = " ".join(record["message"] for record in records)
    assert "serving colours:1, fp32, on CPUExecutionProvider" in messages  # the parent
    assert "initialized" in messages  # the worker
    assert sum(record["message"].startswith("pictures are resized by ") for record in records) >= 1


def test_a_refused_request_is_in_the_log_under_the_id_its_caller_was_given(told: Told) -> None:
    records = lines(told.server)
    for answer in told.answers:
        if answer.status_code == 200:
            continue
        error = answer.json()["error"]
        assert answer.headers["x-request-id"] == error["request_id"]
        found = [record for record in records if record["request_id"] == error["request_id"] and record["logger"] != "ortserve.access"]
        assert len(found) == 1, error
        assert error["code"] in found[0]["message"]
    assert told.answers[4].json()["error"]["request_id"] == "the-callers-own"


def test_the_access_log_has_one_line_for_each_request(told: Told) -> None:
    access = {record["request_id"]: record for record in lines(told.server) if record["logger"] == "ortserve.access"}
    for answer in told.answers:
        record = access[answer.headers["x-request-id"]]
        assert record["status"] == answer.status_code
        assert record["method"] == answer.request.method
        assert record["duration_ms"] > 0
    assert {record["endpoint"] for record in access.values()} <= {
        "/classify", "/classify_batch", "/models", "/models/{name}", "/readyz", "/metrics", "unmatched"
    }  # fmt: skip


# --- traces ----------------------------------------------------------------------------------------------------------


def traced(server: Server, trace_id: str, *, sampled: bool = True) -> httpx.Response:
    """The answer to a picture that is part of the caller's trace."""
    parent = f"00-{trace_id}-00f067aa0ba902b7-{'01' if sampled else '00'}"
    return httpx.post(f"{server.base_url}/classify", content=picture("blue"), headers={**PNG, "traceparent": parent}, timeout=60)


def test_a_traced_request_arrives_under_its_callers_trace_with_its_stages(told: Told, receiver: Receiver) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = traced(told.server, trace_id)
    until(lambda: len(receiver.of_trace(trace_id)) >= 4)
    spans = {span.name: span for span in receiver.of_trace(trace_id)}
    assert spans.keys() == {"POST /classify", "decode", "queue", "inference"}
    root = spans.pop("POST /classify")
    assert root.parent_span_id.hex() == "00f067aa0ba902b7"
    timing = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    for name, span in spans.items():
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= root.end_time_unix_nano
        assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 == pytest.approx(float(timing[name]), abs=0.01)
    assert spans["decode"].end_time_unix_nano <= spans["queue"].start_time_unix_nano
    assert spans["queue"].end_time_unix_nano <= spans["inference"].start_time_unix_nano


def test_a_refused_request_of_a_trace_has_the_trace_in_its_log_line(told: Told) -> None:
    trace_id = "5bf92f3577b34da6a3ce929d0e0e4736"
    parent = f"00-{trace_id}-00f067aa0ba902b7-01"
    answer = httpx.post(f"{told.server.base_url}/classify", content=b"x", headers={**PNG, "traceparent": parent}, timeout=60)
    request_id = answer.json()["error"]["request_id"]
    assert {record.get("trace_id") for record in lines(told.server) if record["request_id"] == request_id} == {trace_id}


def test_with_nothing_turned_on_nothing_is_told(home: Path, tmp_path: Path, receiver: Receiver) -> None:
    trace_id = "6bf92f3577b34da6a3ce929d0e0e4736"
    with start(home, tmp_path, receiver) as server:
        with ThreadPoolExecutor(4) as pool:
            assert {answer.status_code for answer in pool.map(lambda _: traced(server, trace_id), range(20))} == {200}
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert "ortserve.access" not in server.log()
        assert "trace" not in server.log()
    assert receiver.of_trace(trace_id) == []


def test_the_last_spans_arrive_although_the_service_stops(told: Told, receiver: Receiver) -> None:
    """The last test of this file: it stops the service."""
    trace_id = "7bf92f3577b34da6a3ce929d0e0e4736"
    assert traced(told.server, trace_id).status_code == 200
    assert traced(told.server, "8" + trace_id[1:], sampled=False).status_code == 200
    told.server.process.send_signal(signal.SIGTERM)
    assert told.server.wait_exit() == 0
    assert {span.name for span in receiver.of_trace(trace_id)} == {"POST /classify", "decode", "queue", "inference"}
    assert receiver.of_trace("8" + trace_id[1:]) == []
    lines(told.server)  # its last words are JSON too
