"""A service told to stop: not ready first, then nothing more is accepted, and nothing that was accepted is lost; under load."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.callers import Callers
from tests.packages import add_package, picture, write_profile
from tests.serving import Server, refuses, until

pytestmark = pytest.mark.e2e

PNG = {"content-type": "image/png"}
DELAY_MS = 1500

Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model `colours`."""
    folder = tmp_path_factory.mktemp("home")
    add_package(folder, "colours:1")
    return folder


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Start:
    """`start(workers=1, drain_delay_ms=..., env={})`: a context manager around a ready service on `colours`."""

    @contextmanager
    def started(workers: int = 1, drain_delay_ms: int = DELAY_MS, env: dict[str, str] | None = None) -> Iterator[Server]:
        mine = write_profile(tmp_path / "mine.yaml", workers=workers, stopping={"drain_delay_ms": drain_delay_ms})
        temp = tmp_path / "temp"
        temp.mkdir()
        with Server(home, env={"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "colours", "TMPDIR": str(temp), **(env or {})}) as server:
            yield server

    return started


def workers(server: Server) -> list[psutil.Process]:
    """The living worker processes."""
    return [process for process in server.processes() if "_bentoml_impl.worker.service" in process.cmdline()]


@pytest.mark.parametrize(("number", "delay_ms"), [(1, DELAY_MS), (2, DELAY_MS), (2, 0)], ids=["one", "two", "two at once"])
def test_under_load_nothing_that_was_accepted_is_lost(start: Start, number: int, delay_ms: int) -> None:
    with start(number, delay_ms) as server:
        callers = Callers(f"{server.base_url}/classify", picture("green"), count=8)
        callers.wait_for(200)
        before = callers.answered()
        server.process.send_signal(signal.SIGTERM)
        callers.wait()
        assert server.wait_exit() == 0
        assert server.processes() == []
        assert callers.lost == []
        assert callers.refused == 8
        assert "Traceback" not in server.log()
        if delay_ms:
            assert callers.answered() - before > 50


def test_it_is_first_not_ready_and_answers_on_until_the_delay_has_passed(start: Start) -> None:
    with start(2) as server, closing(httpx.Client(base_url=server.base_url, timeout=30)) as client:
        assert client.get("/readyz").status_code == 200
        told_at = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503)
        assert time.monotonic() - told_at < DELAY_MS / 1000  # or the delay had no meaning
        answer = client.get("/readyz")
        assert answer.json()["error"]["code"] in ("shutting_down", "not_ready")
        assert answer.headers["connection"] == "close"  # so that its caller goes elsewhere before the end
        assert client.get("/livez").status_code == 200
        assert client.post("/classify", content=picture("red"), headers=PNG).json()["predictions"][0]["label"] == "red"
        assert server.wait_exit() == 0
        assert time.monotonic() - told_at >= DELAY_MS / 1000


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a body"])
def test_a_request_on_its_way_when_the_service_is_told_to_stop_is_answered(start: Start, sent: str) -> None:
    body = picture("blue")
    whole = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    cut = {"nothing": 0, "half a head": 30, "half a body": len(whole) - 10}[sent]
    with start(drain_delay_ms=0) as server, closing(socket.create_connection(("127.0.0.1", server.port), 30)) as caller:
        caller.sendall(whole[:cut])
        httpx.get(f"{server.base_url}/readyz")  # by now the connection is accepted and its bytes are read
        server.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(server.port))
        caller.sendall(whole[cut:])
        answer = b""
        while piece := caller.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["predictions"][0]["label"] == "blue"
        assert server.wait_exit() == 0


def test_ctrl_c_does_not_wait(start: Start) -> None:
    with start(drain_delay_ms=60_000) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.wait_exit(30) == 0
        assert server.processes() == []


def test_a_stop_in_the_moment_a_worker_is_made_is_not_lost(home: Path) -> None:
    server = Server(home, env={"ORTSERVE_MODEL": "colours"})
    try:
        until(lambda: catches_sigterm(server.process.pid))  # from here to the worker's first breath circus is busy
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit() == 0
        assert server.processes() == []
    finally:
        server.stop()


def catches_sigterm(pid: int) -> bool:
    """Whether that process has a handler for SIGTERM."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_workers_do_not_outlive_a_parent_that_was_killed(start: Start) -> None:
    with start(2) as server:
        server.process.kill()
        until(lambda: server.processes() == [])
        assert refuses(server.port)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", server.port))


# --- in a container, where BentoML starts no worker again -------------------------------------------------------------

CONTAINER = {"BENTOML_CONTAINERIZED": "true"}


def test_in_a_container_a_lost_worker_of_two_makes_livez_fail(start: Start) -> None:
    with start(2, 0, CONTAINER) as server:
        assert httpx.get(f"{server.base_url}/livez").json() == {"status": "alive"}
        workers(server)[0].kill()
        until(lambda: len(workers(server)) == 1)
        answer = httpx.get(f"{server.base_url}/livez", timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "process_lost")
        assert "1 died" in answer.json()["error"]["message"]
        assert httpx.get(f"{server.base_url}/readyz", timeout=30).status_code == 503


def test_in_a_container_the_service_ends_with_its_only_worker(start: Start) -> None:
    with start(1, 0, CONTAINER) as server:
        workers(server)[0].kill()
        assert server.wait_exit(60) != 0
        assert server.processes() == []
