"""A server under measurement: started, waited for, looked into, ended with every process it made. One class for ours and every other."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from ortserve.tune.ports import free_port
from tests.serving import bentoml_environment, processes_marked

_MARK = "BENCHMARK_SERVER"  # processes are found by this variable: workers leave the process group, and orphans the process tree
PORT = "{port}"  # in a command or a variable, where the port goes
OTHER_PORT = "{other port}"  # where one more free port goes


class DidNotStart(RuntimeError):
    """With the reason, and the end of what the server wrote."""


class Served:
    """A server. As a context manager it answers inside the block and is gone after it; `ready_s` is the time that took."""

    def __init__(
        self, command: Sequence[str], *, ready: str, home: Path, env: Mapping[str, str] | None = None, cwd: Path, timeout_s: float = 300
    ) -> None:
        """`ready` is a path that answers 200 once requests are; `home` its own BENTOML_HOME; PORT stands for a free port in `command`."""
        self.port = free_port()
        self.ready_s = 0.0
        self._ready, self._timeout_s, self._cwd = ready, timeout_s, cwd
        other = str(free_port())
        self._command = [part.replace(PORT, str(self.port)) for part in command]
        self._mark = uuid.uuid4().hex
        extra = {key: value.replace(PORT, str(self.port)).replace(OTHER_PORT, other) for key, value in (env or {}).items()}
        self._env = bentoml_environment(home, {"PORT": str(self.port), **extra, _MARK: self._mark})

    def __enter__(self) -> Served:
        self._folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
        began = time.perf_counter()
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env={**self._env, "TMPDIR": str(self._folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while not self._answers():
                if self._process.poll() is not None:
                    raise DidNotStart(f"did not start: ended with {self._process.returncode}: {self.log()[-1500:]}")
                if time.perf_counter() - began > self._timeout_s:
                    raise DidNotStart(f"did not start: not ready within {self._timeout_s:g} s: {self.log()[-1500:]}")
                time.sleep(0.05)  # polls a foreign process, which has no event to wait for
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.perf_counter() - began
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process, as Ctrl-C does; SIGKILL to what is left ten seconds later."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        left = self.processes()
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=10)
        shutil.rmtree(self._folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Every living process of the server, workers and orphans included."""
        return processes_marked(_MARK, self._mark)

    def cpu_seconds(self) -> float:
        """CPU seconds, user and system, of all its living processes so far."""
        return sum(map(_cpu_seconds, self.processes()))

    def log(self) -> str:
        """What it wrote so far."""
        try:
            return (self._folder / "log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{self._ready}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0  # it ended meanwhile
    return float(times.user + times.system)


def pss_bytes(processes: Sequence[psutil.Process]) -> int:
    """Proportional set size: memory the processes share with others is counted in parts."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue  # it ended meanwhile
        total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


class PeakMemory:
    """The largest PSS of a server's process tree, looked at every two seconds while the block lasts: more often would cost the server."""

    def __init__(self, served: Served, every_s: float = 2.0) -> None:
        self.bytes = 0
        self._served, self._every_s = served, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, pss_bytes(self._served.processes()))
