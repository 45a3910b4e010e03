"""The load client against tiny servers: what it counts is what they did. No absolute times."""

from __future__ import annotations

import contextlib
import itertools
import socketserver
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import client

REQUEST = client.post("/answer", "text/plain", b"x" * 100_000)
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;e=f\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
TO_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN
TIMED = b"HTTP/1.1 200 OK\r\nServer-Timing: decode;dur=1.50, queue;dur=0.25\r\nContent-Length: 2\r\n\r\nok"


class Tiny(socketserver.ThreadingTCPServer):
    """Answers each whole request with the next of its answers; an empty one closes the connection instead."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answers: Iterator[bytes], before: Callable[[], None]) -> None:
        self.answers, self.before = answers, before
        self.lock = threading.Lock()
        self.arrivals: list[float] = []
        self.connections = 0
        self.wrong = 0
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(socketserver.StreamRequestHandler):
    """One connection."""

    server: Tiny

    def handle(self) -> None:
        self.server.connections += 1
        try:
            while request := self.rfile.read(len(REQUEST)):
                with self.server.lock:
                    self.server.arrivals.append(time.monotonic())
                    self.server.wrong += request != REQUEST
                    answer = next(self.server.answers)
                self.server.before()
                if not answer:
                    return
                self.wfile.write(answer)
                if b"close" in answer:
                    return
        except ConnectionError:
            return


@contextmanager
def tiny(*answers: bytes, before: Callable[[], None] = lambda: None) -> Iterator[Tiny]:
    """A server that repeats the answers, and is gone after the block."""
    with Tiny(itertools.cycle(answers), before) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def load(
    server: Tiny, callers: int = 2, seconds: float = 0.5, rate: float = 0, seed: int = 0, warm_up_s: float = client.WARM_UP_S
) -> dict[str, Any]:
    """What the client says."""
    return client.load(
        server.server_address[1], callers, seconds, [client.request_file(REQUEST)], rate=rate, seed=seed, warm_up_s=warm_up_s
    )


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, CLOSING, TO_END, CONTINUED], ids=["plain", "chunked", "closing", "to end", "continued"])
def test_every_shape_of_answer_is_read_to_its_end(answer: bytes) -> None:
    with tiny(answer) as server:
        run = load(server, before := 2)
    assert run["failed"] == 0
    assert run["errors"] == {}
    assert run["statuses"] == {"200": run["requests"]}
    assert server.wrong == 0
    assert len(server.arrivals) - before <= run["answered"] <= len(server.arrivals)
    assert (server.connections == 2) == (b"close" not in answer)


def test_statuses_are_counted_apart_and_so_is_their_latency() -> None:
    slow = itertools.cycle([0.05, 0.0])
    with tiny(PLAIN, BUSY, before=lambda: time.sleep(next(slow))) as server:
        run = load(server, callers=1)
    statuses = run["statuses"]
    assert set(statuses) == {"200", "429"}
    assert abs(statuses["200"] - statuses["429"]) <= 1
    assert run["requests"] == statuses["200"]
    assert run["failed_p50_ms"] < run["p50_ms"]
    assert run["answers_per_s"] > run["requests_per_s"]


def test_a_connection_cut_before_the_answer_is_an_error_only_where_it_was_new() -> None:
    with tiny(b"") as server:
        run = load(server, callers=1, seconds=0.1)
    assert run["requests"] == 0
    assert run["statuses"] == {}
    assert set(run["errors"]) == {"cut_off"}
    with tiny(PLAIN, b"") as server:  # keep-alive's race: sent again over a new connection
        run = load(server, callers=1)
    assert run["failed"] == 0
    assert run["requests"] > 0


def test_a_server_that_is_not_there_is_an_error_of_its_kind() -> None:
    with tiny(PLAIN) as server:
        port = server.server_address[1]
    run = client.load(port, 2, 0.1, [client.request_file(REQUEST)])
    assert set(run["errors"]) == {"no_connection"}
    assert run["requests"] == 0


def test_stages_of_server_timing_are_averaged() -> None:
    with tiny(TIMED) as server:
        run = load(server)
    assert run["stages_ms"] == {"decode": 1.5, "queue": 0.25}


def test_the_open_loop_sends_at_its_rate_with_exponential_gaps() -> None:
    rate, seconds = 400.0, 2.0
    with tiny(PLAIN) as server:
        run = load(server, callers=64, seconds=seconds, rate=rate, seed=3)
    expected = rate * seconds
    assert abs(run["intended"] - expected) < 5 * expected**0.5  # a Poisson count lies five deviations off once in two million
    assert run["intended"] == run["requests"]
    assert run["unanswered"] == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(server.arrivals))]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation / mean > 0.7  # 1 for exponential gaps, 0 for even ones; more where the machine stalls


def test_the_open_loop_counts_the_wait_for_a_connection() -> None:
    with tiny(PLAIN, before=lambda: time.sleep(0.02)) as server:  # 50 requests a second over one connection
        run = load(server, callers=1, seconds=0.5, rate=100)
    assert server.connections == 1
    assert run["p99_ms"] > 5 * 20
    assert run["mean_ms"] > 2 * 20


def test_past_capacity_the_rate_is_of_what_is_answered_in_the_window_and_the_filling_does_not_count() -> None:
    began = time.monotonic()
    with tiny(PLAIN, before=lambda: time.sleep(0.02)) as server:  # 50 requests a second over one connection, at most
        run = load(server, callers=1, seconds=1.0, rate=150, warm_up_s=1.0)
    arrived = [at for at in server.arrivals if began + 1.0 <= at <= began + 2.0]
    assert run["intended"] < 250  # of the window, not of the warm-up before it
    assert run["requests_per_s"] == pytest.approx(len(arrived), rel=0.15)  # those that were meant to be sent before the window among them
    assert run["p50_ms"] > 1500  # each waited for what the warm-up left; without one the median is 1000


def test_what_comes_in_the_warm_up_is_in_no_figure_but_the_failures() -> None:
    began = time.monotonic()
    with tiny(PLAIN) as server:
        server.answers = iter(lambda: BUSY if time.monotonic() - began < 0.6 else PLAIN, None)
        run = load(server, callers=16, seconds=0.5, rate=100, warm_up_s=1.0)
    assert set(run["statuses"]) == {"200"}
    assert run["failed"] > 0
    assert run["failed_p50_ms"] is None


def test_the_same_seed_brings_the_same_arrivals() -> None:
    counts: Counter[int] = Counter()
    for seed in (1, 1, 2, 3, 4):
        with tiny(PLAIN) as server:
            counts[load(server, callers=32, seconds=0.5, rate=300, seed=seed)["intended"]] += 1
    assert max(counts.values()) >= 2
    assert len(counts) > 1


def test_the_rate_does_not_depend_on_where_the_window_cuts_between_batches() -> None:
    def run(seconds: float) -> dict[str, Any]:
        barrier = threading.Barrier(4)  # of this run alone: what the one before left waiting would break it

        def batch() -> None:  # four at a time, five times a second, all answered at once
            with contextlib.suppress(threading.BrokenBarrierError):
                if barrier.wait(timeout=5) == 0:
                    time.sleep(0.2)
                barrier.wait(timeout=5)

        with tiny(PLAIN, before=batch) as server:
            answered = load(server, callers=4, seconds=seconds)
            barrier.abort()
        return answered

    runs = [run(seconds) for seconds in (1.1, 1.3)]  # no whole number of batches
    by_latency = [4000 / run["mean_ms"] for run in runs]
    assert [run["requests_per_s"] for run in runs] == pytest.approx(by_latency, rel=0.05)


def test_the_command_line_sends_a_picture_as_a_form_field(tmp_path: Path) -> None:
    picture = tmp_path / "p.jpg"
    picture.write_bytes(b"\xff\xd8jpeg")
    request = client.as_request(picture, "/classify").read_bytes()
    head, body = request.split(b"\r\n\r\n", 1)
    assert head.startswith(b"POST /classify HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b'name="image"' in body
    assert b"\r\n\r\n\xff\xd8jpeg\r\n--" in body


def test_a_source_that_does_not_compile_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "client.c"
    broken.write_text("int main(", encoding="utf-8")
    monkeypatch.setattr(client, "SOURCE", broken)
    with pytest.raises(RuntimeError, match="gcc could not compile"):
        client.compiled()
    assert subprocess.run(["gcc", "--version"], check=False, capture_output=True).returncode == 0
