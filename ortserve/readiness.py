"""Which workers of this service are warm: one mark each in the service's run folder, counted by whichever worker is asked."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from ortserve import multiprocess

RUN_FOLDER_ENV = "ORTSERVE_RUN_FOLDER"  # set by the parent process for its workers
_PREFIX = "ortserve"
_EVER = "ever_ready"
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


def ever_ready(folder: Path) -> bool:
    """True once any worker of that run folder was warm, whatever became of it."""
    return (folder / _EVER).exists()


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


def run_folder() -> Path:
    """This service's run folder: the parent's, or a new one where there was no parent (one worker, started by hand)."""
    inherited = os.environ.get(RUN_FOLDER_ENV)
    return Path(inherited) if inherited and Path(inherited).is_dir() else create_run_folder()


def parent_lives(folder: Path) -> bool:
    """True while the process lives that made that run folder."""
    return multiprocess.is_alive(folder.name.split(".")[1])


class Readiness:
    """The ready marks of one service's workers. A worker that died does not count: its process is looked for each time."""

    def __init__(self, folder: Path, expected: int) -> None:
        self._ever = folder / _EVER
        self._folder = folder / "ready"
        self._folder.mkdir(exist_ok=True)
        self._mark = self._folder / (multiprocess.process_id(os.getpid()) or "")
        self._expected = expected
        self.leaving = False  # this worker was ready and is no more

    def mark(self) -> None:
        """This worker is warm and accepts requests."""
        self._ever.touch()
        self._mark.touch()

    def unmark(self) -> None:
        """This worker is about to end."""
        self.leaving = True
        self._mark.unlink(missing_ok=True)

    def count(self) -> tuple[int, int]:
        """(warm and living workers, expected workers)."""
        return sum(multiprocess.is_alive(mark.name) for mark in self._folder.iterdir()), self._expected
