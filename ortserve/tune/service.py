"""A real `bentoml serve` with one candidate's profile: started on a free port, waited for, asked, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from ortserve.errors import TuneError
from ortserve.startup import MODEL_ENV, PROFILE_ENV
from ortserve.tune.ports import free_port

ROOT = Path(__file__).resolve().parents[2]  # where service.py is
READY_WITHIN_S = 120.0  # a GPU's provider may tune itself at start; who needs longer is no candidate
STOP_WITHIN_S = 20.0
SETTINGS = ("ORTSERVE_", "OTEL_", "PROMETHEUS_")  # of the caller's environment: they would change what is measured
MARK = "ORTSERVE_TUNE_SERVER"  # finds every process of a start: BentoML's workers leave the process group


class CannotServe(Exception):
    """The candidate did not start, or does not answer as it should; the message is the reason."""


class Service:
    """One start. As a context manager it is ready inside the block and gone after it. Raises CannotServe where it does not get ready."""

    def __init__(self, model: str, profile: Path, log: Path) -> None:
        self.port = free_port()
        self.log = log
        self._mark = uuid.uuid4().hex
        kept = {key: value for key, value in os.environ.items() if not key.startswith(SETTINGS)}
        own = {MODEL_ENV: model, PROFILE_ENV: str(profile), "BENTOML_DO_NOT_TRACK": "True", MARK: self._mark}
        self._environment = {**kept, **own}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Service:
        try:
            with _undisturbed():
                self._process = self._begin()
            self._wait_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def _begin(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "bentoml", "serve", ".", "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the search, which then ends its services
            )

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise CannotServe(f"did not start: {self._last_words()}")
            with contextlib.suppress(OSError):
                status, _ = self.ask("/readyz")
                if status == 200:
                    return
            time.sleep(0.05)  # polls a foreign process, which has no event to wait for
        raise CannotServe(f"was not ready within {READY_WITHIN_S:g} s: {self._last_words()}")

    def _last_words(self) -> str:
        """The log's line that names the error, else its last one."""
        lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("error: ")] or lines or ["it wrote nothing"]
        return said[-1].removeprefix("error: ")

    def ask(self, path: str) -> tuple[int, Any]:
        """The status of a GET, and the JSON of its answer. Raises OSError where there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None
        except ValueError as error:
            raise OSError(f"{path} answered no JSON: {error}") from None

    def facts(self, model: str) -> dict[str, Any]:
        """What the service says of the model, its manifest among it."""
        status, facts = self.ask(f"/models/{model}")
        if status != 200 or not isinstance(facts, dict):
            raise TuneError(f"expected GET /models/{model} to describe the model, it answered {status}: give NAME or NAME:VERSION")
        return facts

    def send(self, request: bytes) -> tuple[int, Any]:
        """The status and the JSON of the answer to a whole HTTP request. Raises CannotServe where there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection, connection.makefile("rb") as answer:
                connection.sendall(request)
                status = int(answer.readline().split()[1])
                length = 0
                while (line := answer.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        length = int(line.removeprefix(b"content-length:"))
                return status, json.loads(answer.read(length))
        except (OSError, ValueError, IndexError) as error:
            raise CannotServe(f"gave no answer: {error}") from None

    def stop(self) -> None:
        """End every process of this start, as Ctrl-C does; SIGKILL to what is left. Ctrl-C meanwhile waits for it. Safe to call twice."""
        if self._process is None:
            return
        with _undisturbed():
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_WITHIN_S)
            left = list(self._processes())
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
            self._process.wait()

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):  # it ended meanwhile, or is somebody else's
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals to end wait until the block is done: no service is left behind that nobody knows. For the main thread."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda which, _: came.append(which)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
