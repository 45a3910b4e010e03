"""A real `bentoml serve` in its own processes, for tests that speak HTTP: started, waited for, read and always stopped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
from prometheus_client.parser import text_string_to_metric_families

from ortserve.tune.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits.bentomodel"

SERVE = ("bentoml", "serve")
SERVE_ONE = ("bentoml_cli._internal.start", "start-http-server")  # one service of several: BentoML's own command in a container

# Processes are found by this variable: BentoML's workers leave the process group, and orphans leave the process tree.
_MARK = "ORTSERVE_TEST_SERVER"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]  # of `/metrics`: by name and labels


def bentoml_environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a `bentoml` command on the store in `home`: this one's, without settings that change what is served."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ORTSERVE_", "BENTOML_", "PROMETHEUS_", "OTEL_"))}
    return {**inherited, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **(extra or {})}


def bentoml(home: Path, *arguments: str, cwd: Path = ROOT, timeout_s: float = 120) -> str:
    """What `bentoml ARGUMENTS` printed, on the store in `home`. Raises AssertionError with its output where it failed."""
    result = subprocess.run(
        [sys.executable, "-m", "bentoml", *arguments],
        cwd=cwd,
        env=bentoml_environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert result.returncode == 0, f"bentoml {' '.join(arguments)} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout


def build_model(home: Path, *arguments: str) -> str:
    """What `build_model.py ARGUMENTS` printed, on the store in `home`. Raises AssertionError with its output where it failed."""
    command = [sys.executable, "build_model.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=bentoml_environment(home), capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"build_model.py {' '.join(arguments)} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout


def refuses(port: int) -> bool:
    """Whether nobody new gets in there."""
    with socket.socket() as probe:
        probe.settimeout(0.1)  # while newcomers are only ignored
        return probe.connect_ex(("127.0.0.1", port)) != 0


def until(happened: Callable[[], bool], timeout_s: float = 90) -> None:
    """Come back once that is so. Raises AssertionError where it is not in time. For foreign processes, which give no event to wait for."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def processes_marked(variable: str, value: str) -> list[psutil.Process]:
    """Every living process that has the environment variable with that value."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or belongs to someone else
    return found


class Server:
    """One `bentoml serve`. As a context manager it is ready inside the block and gone after it.

    `target` is what is served: "." for the checkout, NAME:VERSION for a bento; `env` is laid over the environment
    (`ORTSERVE_PROFILE`, `ORTSERVE_MODEL`); `command` starts it, `arguments` are further ones of it; `port` is any free one where it is
    not given.
    """

    def __init__(
        self,
        home: Path,
        *,
        target: str = ".",
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = SERVE,
        arguments: Sequence[str] = (),
        port: int | None = None,
        ready_timeout_s: float = 90,
    ) -> None:
        self.port = free_port() if port is None else port
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._mark = uuid.uuid4().hex
        self._ready_timeout_s = ready_timeout_s
        self._folder = Path(tempfile.mkdtemp(prefix="server-"))
        self.log_path = self._folder / "log"
        self._log = ""  # what the log held when the server was stopped
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command, target, "--host", "127.0.0.1", "--port", str(self.port), *arguments],
                cwd=cwd,
                env=bentoml_environment(home, {**(env or {}), _MARK: self._mark}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Server:
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def wait_ready(self) -> None:
        """Come back once `/readyz` answers 200. Raises AssertionError with the log where the process ended or time ran out."""
        deadline = time.monotonic() + self._ready_timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"bentoml serve ended with {self.process.returncode}:\n{self.log()}")
            try:
                with urllib.request.urlopen(f"{self.base_url}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.05)  # polls a foreign process, which has no event to wait for
        raise AssertionError(f"bentoml serve was not ready within {self._ready_timeout_s:g} s:\n{self.log()}")

    def wait_exit(self, timeout_s: float = 60) -> int:
        """The exit status, once `bentoml serve` ended by itself. Raises subprocess.TimeoutExpired where it did not."""
        return self.process.wait(timeout_s)

    def stop(self) -> None:
        """End every process of this server, as Ctrl-C does; SIGKILL to what is left. Safe to call twice; the log stays readable."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        left = self.processes()
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=10)
        self._log = self.log()
        shutil.rmtree(self._folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Every living process of this server, workers and orphans included."""
        return processes_marked(_MARK, self._mark)

    def workers(self) -> list[psutil.Process]:
        """The living worker processes, the oldest first."""
        found = [process for process in self.processes() if "_bentoml_impl.worker.service" in process.cmdline()]
        return sorted(found, key=lambda process: process.create_time())

    def log(self) -> str:
        """Everything the processes wrote so far, standard output and standard error together."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return self._log

    def metrics(self) -> Samples:
        """The samples of `/metrics`: `{(name, frozenset(labels.items())): value}`."""
        with urllib.request.urlopen(f"{self.base_url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    return sum(number for (sample, pairs), number in samples.items() if sample == name and labels.items() <= dict(pairs).items())


def value(server: Server, name: str, **labels: str) -> float:
    """That sum now."""
    return total(server.metrics(), name, **labels)
