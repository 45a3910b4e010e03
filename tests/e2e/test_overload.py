"""More than the service can do: refused at once, late, gone or finished, and whatever was accepted is answered rightly."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.packages import COLOURS, add_package, picture, write_profile
from tests.rush import at_once
from tests.serving import Server, total, until, value

pytestmark = pytest.mark.e2e

NAMES = tuple(COLOURS)
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model `slow`: some 0.3 s for each row, whatever the batch."""
    folder = tmp_path_factory.mktemp("home")
    add_package(folder, "slow:1", seconds_per_row=0.3)
    return folder


@pytest.fixture(scope="module")
def tight(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Batches of two, four places in the queue."""
    mine = write_profile(
        tmp_path_factory.mktemp("tight") / "tight.yaml",
        batching={"max_batch_size": 2, "max_queue_size": 4},
        limits={"request_timeout_ms": 60_000},
    )
    with Server(home, env={"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "slow"}) as server:
        yield server


def classify(server: Server, colour: str) -> httpx.Response:
    """The answer to a picture of that colour."""
    return httpx.post(f"{server.base_url}/classify", content=picture(colour), headers=PNG, timeout=120)


def many(colours: list[str]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Those pictures as the form of `/classify_batch`."""
    return [("images", (f"{index}.png", picture(colour), "image/png")) for index, colour in enumerate(colours)]


def best(answer: httpx.Response) -> str:
    label: str = answer.json()["predictions"][0]["label"]
    return label


def admitted(server: Server) -> float:
    """Rows that wait or have started, of one scrape."""
    samples = server.metrics()
    return total(samples, "ortserve_queue_size_rows") + total(samples, "ortserve_batch_size_rows_sum")


def test_a_full_queue_refuses_at_once_and_what_it_took_is_answered_rightly(tight: Server) -> None:
    before = value(tight, "ortserve_refusals_total", reason="queue_full")
    colours = [NAMES[index % 3] for index in range(24)]
    taken, refused = at_once(colours, lambda colour: classify(tight, colour))
    assert len(taken) >= 4
    assert all(best(answer) == colour for answer, colour in taken)
    assert refused  # six of the 24 fit at once, and a few more as those finish
    assert all(answer.json()["error"]["code"] == "queue_full" for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    # At once, by the service's own clock: a refusal takes less than a batch, and whoever was taken waits for one or more.
    refusing, count = (value(tight, f"bentoml_service_request_duration_seconds_{of}", http_response_code="429") for of in ("sum", "count"))
    running, batches = (value(tight, f"ortserve_inference_duration_seconds_{of}") for of in ("sum", "count"))
    assert refusing / count < running / batches
    assert value(tight, "ortserve_refusals_total", reason="queue_full") - before == len(refused)


def test_a_request_of_more_pictures_than_a_batch_is_answered_in_order(tight: Server) -> None:
    rows, batches = value(tight, "ortserve_batch_size_rows_sum"), value(tight, "ortserve_batch_size_rows_count")
    colours = ["green", "blue", "red", "blue"]
    answer = httpx.post(f"{tight.base_url}/classify_batch", files=many(colours), timeout=120)
    assert [result["predictions"][0]["label"] for result in answer.json()["results"]] == colours
    assert value(tight, "ortserve_batch_size_rows_sum") - rows == 4
    assert value(tight, "ortserve_batch_size_rows_count") - batches >= 2


def test_a_request_of_more_pictures_than_the_queue_ever_holds_is_not_told_to_come_back(tight: Server) -> None:
    answer = httpx.post(f"{tight.base_url}/classify_batch", files=many(["red"] * 5), timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")


def test_a_caller_that_leaves_costs_no_compute(tight: Server) -> None:
    rows = value(tight, "ortserve_batch_size_rows_sum")
    gone = value(tight, "bentoml_service_request_total", http_response_code="499")
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(httpx.post, f"{tight.base_url}/classify_batch", files=many(["red", "green", "blue", "red"]), timeout=120)
        until(lambda: value(tight, "ortserve_queue_size_rows") in (2, 3))  # the first batch runs, with those that were decoded by then
        waiting = value(tight, "ortserve_queue_size_rows")
        body = picture("blue")
        with socket.create_connection(("127.0.0.1", tight.port)) as leaver:
            leaver.sendall(
                f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            until(lambda: value(tight, "ortserve_queue_size_rows") > waiting or others.done())
        assert not others.done(), "this machine is too slow or too fast for the test: the batch before the leaver was done"
        until(lambda: value(tight, "bentoml_service_request_total", http_response_code="499") == gone + 1)
        assert others.result().status_code == 200
    assert value(tight, "ortserve_batch_size_rows_sum") - rows == 4  # never the leaver's
    assert value(tight, "ortserve_queue_size_rows") == 0


def test_a_missed_deadline_answers_504_and_computes_nothing_that_is_late(home: Path, tmp_path: Path) -> None:
    mine = write_profile(tmp_path / "hasty.yaml", batching={"max_batch_size": 1}, limits={"request_timeout_ms": 50})
    pictures = [picture(colour) for colour in NAMES * 2]
    with (
        Server(home, env={"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "slow"}) as server,
        httpx.Client(timeout=120) as client,  # one for all: to make one takes long enough for the first row to be done, and its time known
        ThreadPoolExecutor(6) as pool,
    ):
        answers = list(pool.map(lambda content: client.post(f"{server.base_url}/classify", content=content, headers=PNG), pictures))
        assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {(504, "deadline_exceeded")}
        until(lambda: value(server, "ortserve_batches_in_flight") == 0)
        assert value(server, "ortserve_refusals_total", reason="deadline_exceeded") == 6
        assert value(server, "ortserve_batch_size_rows_sum") <= 3  # a row that runs outlasts the deadlines behind it
        assert httpx.get(f"{server.base_url}/readyz").status_code == 200


def test_a_service_told_to_stop_answers_everything_it_has_read(home: Path, tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    mine = write_profile(tmp_path / "patient.yaml", batching={"max_batch_size": 1}, limits={"request_timeout_ms": 60_000})
    env = {"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "slow", "TMPDIR": str(temp)}
    with Server(home, env=env) as server, ThreadPoolExecutor(9) as pool:
        asked = [(colour, pool.submit(classify, server, colour)) for colour in NAMES * 2]
        batch = pool.submit(httpx.post, f"{server.base_url}/classify_batch", files=many(["blue", "green"]), timeout=120)
        until(lambda: admitted(server) == 8)
        server.process.send_signal(signal.SIGTERM)
        for colour, future in asked:
            answer = future.result()
            assert answer.status_code == 200, answer.text
            assert best(answer) == colour
        assert [result["predictions"][0]["label"] for result in batch.result().json()["results"]] == ["blue", "green"]
        assert server.wait_exit() == 0
        assert server.processes() == []
        assert [path.name for path in temp.iterdir()] == []
        assert "Traceback" not in server.log()
