"""Spans that arrive at a real OTLP/HTTP receiver, and the cost of tracing that is off: nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from ortserve import logs, profile, tracing
from ortserve.errors import ProfileError

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE_ID}-{PARENT_ID}-01", f"00-{TRACE_ID}-{PARENT_ID}-00"


class Receiver:
    """An OTLP/HTTP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def spans(self) -> dict[str, SentSpan]:
        """The spans that arrived, by name."""
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    def resource(self) -> dict[str, Any]:
        """The attributes of the sending service."""
        return attributes(self.requests[0].resource_spans[0].resource)


def attributes(holder: Any) -> dict[str, Any]:
    """OTLP attributes as a plain dict."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A collector, with the standard variable set to it."""
    collector = Receiver()
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server.server_port}")
    yield collector
    collector.close()


def configured(sample_rate: float) -> tracing.Tracer:
    tracer = tracing.configure(profile.Tracing(enabled=True, sample_rate=sample_rate), service_name="digits", service_version="v7")
    assert tracer is not None
    return tracer


def scope(traceparent: str | None = None, method: str = "POST", path: str = "/classify") -> dict[str, Any]:
    """An ASGI scope as uvicorn makes it."""
    headers = [(b"host", b"x"), *([(b"traceparent", traceparent.encode())] if traceparent else [])]
    return {"type": "http", "method": method, "path": path, "scheme": "http", "query_string": b"", "headers": headers}


def test_a_span_arrives_with_the_callers_trace_id_its_attributes_and_its_stages(receiver: Receiver) -> None:
    tracer = configured(0.0)  # nothing would be drawn: the caller's flag decides
    with tracer.server_span(scope(SAMPLED), route="/classify") as span:
        span.record("decode", 1_000, 2_000, {"image.format": "png"})
        span.record_stages({"queue": 0.001, "inference": 0.02})
        span.set_status(200)
    tracer.close()
    spans = receiver.spans()
    server = spans["POST /classify"]
    assert server.trace_id.hex() == TRACE_ID
    assert server.parent_span_id.hex() == PARENT_ID
    assert server.kind == SentSpan.SPAN_KIND_SERVER
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "url.path": "/classify",
        "url.scheme": "http",
    }
    for name in ("decode", "queue", "inference"):
        assert (spans[name].trace_id, spans[name].parent_span_id) == (server.trace_id, server.span_id)
    assert (spans["decode"].start_time_unix_nano, spans["decode"].end_time_unix_nano) == (1_000, 2_000)
    assert attributes(spans["decode"]) == {"image.format": "png"}
    assert spans["queue"].end_time_unix_nano == spans["inference"].start_time_unix_nano
    assert spans["inference"].end_time_unix_nano - spans["inference"].start_time_unix_nano == 20_000_000
    resource = receiver.resource()
    assert (resource["service.name"], resource["service.version"]) == ("digits", "v7")


def test_a_caller_that_does_not_sample_is_obeyed(receiver: Receiver) -> None:
    tracer = configured(1.0)
    with tracer.server_span(scope(UNSAMPLED), route="/classify") as span:
        assert not span.recording
        span.record("decode", 1, 2)
    with tracer.server_span(scope(), route="/models") as span:
        assert span.recording
    tracer.close()
    assert set(receiver.spans()) == {"POST /models"}


@pytest.mark.parametrize("header", ["", "garbage", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff" + SAMPLED[2:], SAMPLED + "\xff"])
def test_a_header_that_is_no_traceparent_starts_a_trace_of_its_own(receiver: Receiver, header: str) -> None:
    tracer = configured(1.0)
    with tracer.server_span(scope() | {"headers": [(b"traceparent", header.encode("latin-1"))]}, route="/classify"):
        pass
    tracer.close()
    assert receiver.spans()["POST /classify"].parent_span_id == b""


def test_server_errors_mark_the_span_and_callers_errors_do_not(receiver: Receiver) -> None:
    tracer = configured(1.0)
    for status, route in ((404, "/missing"), (504, "/slow")):
        with tracer.server_span(scope(), route=route) as span:
            span.set_status(status)
    with pytest.raises(KeyError), tracer.server_span(scope(), route="/raises"):
        raise KeyError("lost")
    tracer.close()
    spans = receiver.spans()
    assert spans["POST /missing"].status.code == Status.STATUS_CODE_UNSET
    assert "error.type" not in attributes(spans["POST /missing"])
    assert spans["POST /slow"].status.code == Status.STATUS_CODE_ERROR
    assert attributes(spans["POST /slow"])["error.type"] == "504"
    assert spans["POST /raises"].status.code == Status.STATUS_CODE_ERROR


def test_callers_cannot_invent_span_names_and_probes_make_none(receiver: Receiver) -> None:
    tracer = configured(1.0)
    with tracer.server_span(scope(method="BREW", path="/a/b/c"), route="unmatched"):
        pass
    with tracer.server_span(scope(SAMPLED, "GET", "/livez"), route="/livez") as span:
        span.set_status(200)
    tracer.close()
    assert set(receiver.spans()) == {"HTTP"}
    assert "http.route" not in attributes(receiver.spans()["HTTP"])


def test_a_log_line_within_a_span_names_it(receiver: Receiver) -> None:
    tracer = configured(1.0)
    record = logging.makeLogRecord({"msg": "within"})
    with tracer.server_span(scope(SAMPLED), route="/classify"):
        config = logs.dict_config(profile.Logging(format="json"))
        config["filters"]["context"]["()"]().filter(record)
        line = json.loads(config["formatters"]["line"]["()"]().format(record))
    tracer.close()
    assert line["trace_id"] == TRACE_ID
    assert line["span_id"] == receiver.spans()["POST /classify"].span_id.hex()


def test_the_operators_service_name_wins(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-vision")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    tracer = configured(1.0)
    with tracer.server_span(scope(), route="/classify"):
        pass
    tracer.close()
    assert receiver.resource()["service.name"] == "shop-vision"
    assert receiver.resource()["deployment.environment.name"] == "test"


def test_off_means_none_and_no_sdk() -> None:
    code = """
import sys
from ortserve import logs, profile, tracing
assert tracing.configure(profile.Tracing(), service_name="s", service_version="v") is None
logs.configure(profile.Logging())
import logging
logging.getLogger("ortserve").warning("spoken")
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"


def test_a_missing_exporter_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ProfileError, match="install opentelemetry-exporter-otlp-proto-http"):
        configured(1.0)
