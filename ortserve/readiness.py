"""Which workers of this service are warm: one mark each in the service's run folder, counted by whichever worker is asked."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ortserve import multiprocess

if TYPE_CHECKING:
    from ortserve.engine import Engine

RUN_FOLDER_ENV = "ORTSERVE_RUN_FOLDER"  # set by the parent process for its workers
_PREFIX = "ortserve"
_EVER = "ever_ready"  # a mark for each of the start's services that had a warm worker
_EXPECTED = "expected"  # a number of workers for each of them
_FAILED = "failed"


def create_run_folder() -> Path:
    """A folder for one start of the service (ready marks, metrics), known to its workers, removed when this process ends.

    Folders that killed services left behind are removed first. Two services never share one, whatever BENTOML_HOME they have.
    """
    base = Path(tempfile.gettempdir())
    for left in base.glob(f"{_PREFIX}.*"):
        owner = left.name.split(".")[1]
        if not multiprocess.is_alive(owner) and not left.is_symlink() and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}.{multiprocess.process_id(os.getpid())}."))
    os.environ[RUN_FOLDER_ENV] = str(folder)
    maker = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == maker else None)
    return folder


def expect(folder: Path, service: str, workers: int) -> None:
    """Say that this start has so many workers of that service. Called before the first of them is ready."""
    (folder / _EXPECTED).mkdir(exist_ok=True)
    (folder / _EXPECTED / service).write_text(str(workers), encoding="ascii")


def ever_ready(folder: Path) -> bool:
    """True once every service of that run folder had a warm worker, whatever became of it."""
    return all((folder / f"{_EVER}.{expected.name}").exists() for expected in (folder / _EXPECTED).iterdir())


def report_failure(folder: Path, line: str) -> int | str:
    """What to leave a worker with that cannot start: 1 where its parent says the line, whatever number of workers fail; else the line."""
    if made_here(folder):
        return line  # there is no parent
    fresh = folder / f"{_FAILED}.{os.getpid()}"
    fresh.write_text(line, encoding="utf-8")
    fresh.replace(folder / _FAILED)
    return 1


def failure(folder: Path) -> str | None:
    """The line a worker left that could not start; None where none did."""
    try:
        return (folder / _FAILED).read_text(encoding="utf-8")
    except OSError:
        return None


def made_here(folder: Path) -> bool:
    """True where this process made that run folder: it is the parent, or a worker that has none."""
    return f".{multiprocess.process_id(os.getpid())}." in folder.name


def begun() -> Path | None:
    """The run folder that this process made, for another service of the same start; None where there is none."""
    folder = Path(os.environ.get(RUN_FOLDER_ENV) or "/")
    return folder if made_here(folder) and folder.is_dir() else None


def run_folder() -> Path:
    """This service's run folder: the parent's, or a new one where there was no parent (one worker, started by hand)."""
    inherited = os.environ.get(RUN_FOLDER_ENV)
    return Path(inherited) if inherited and Path(inherited).is_dir() else create_run_folder()


def parent_lives(folder: Path) -> bool:
    """True while the process lives that made that run folder."""
    return multiprocess.is_alive(folder.name.split(".")[1])


class Readiness:
    """The ready marks of a start's workers. A worker that died does not count: its process is looked for each time."""

    def __init__(self, folder: Path, service: str) -> None:
        self._ever = folder / f"{_EVER}.{service}"
        self._expected = folder / _EXPECTED
        self._folder = folder / "ready"
        self._folder.mkdir(exist_ok=True)
        self._mark = self._folder / (multiprocess.process_id(os.getpid()) or "")
        self.leaving = False  # this worker was ready and is no more

    def mark(self) -> None:
        """This worker is warm and accepts requests."""
        self._ever.touch()
        self._mark.touch()

    def unmark(self) -> None:
        """This worker is about to end."""
        self.leaving = True
        self._mark.unlink(missing_ok=True)

    def lacking(self, engines: Iterable[Engine] = ()) -> tuple[str, str] | None:
        """Why not all workers are ready or those engines cannot answer now, as an error's code and message; None where they can."""
        if self.leaving:
            return "shutting_down", "this service is stopping: send new requests to another"
        ready, expected = self.count()
        if ready < expected:
            return "not_ready", f"expected {expected} warm workers, {ready} are: wait and ask again"
        if not all(engine.available for engine in engines):
            return "not_ready", "expected a runner that is warm, none is connected: wait and ask again"
        return None

    def count(self) -> tuple[int, int]:
        """(warm and living workers, expected workers), of every service of this start."""
        expected = sum(int(file.read_text(encoding="ascii")) for file in self._expected.iterdir())
        return sum(multiprocess.is_alive(mark.name) for mark in self._folder.iterdir()), expected
