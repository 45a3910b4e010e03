"""One folder in which the worker processes of one service add up their metrics, and the sweeping of the dead.

prometheus_client keeps one memory-mapped file per process and kind (`counter_<id>.db`, `gauge_livesum_<id>.db`) and adds them up
when it is read. It leaves the files of dead processes for ever and names them by pid, which the system hands out again. Here:

- the id is pid and start time, so that no later process is mistaken for an earlier one;
- every reading first folds the files of dead processes into one file per kind, so that counters never go backwards and the folder
  stays small however many workers die; gauges that speak of living processes only are dropped.

A fold that is cut off at any moment by the death of its process is finished or done again by the next one: what it is about to
replace and remove is written to a journal first. A crash of the machine is not covered: the folder serves one start of the service.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

logger = logging.getLogger(__name__)

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's own
FOLDED = "dead"  # takes the place of the id in the names of folded files
_LOCK = "lock"
_JOURNAL = "fold.json"


# --- who lives -------------------------------------------------------------------------------------------------------


def process_id(pid: int) -> str | None:
    """`<pid>-<start time>` of a living process, which no other process on this machine ever has; None for a dead one or a zombie."""
    start = _start_time(pid)
    return None if start is None else f"{pid}-{start}"


def _start_time(pid: int) -> int | None:
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        fields = stat[stat.rindex(b")") + 2 :].split()  # the name in parentheses may hold anything
        return None if fields[0] in (b"Z", b"X") else int(fields[19])  # proc(5): field 22, clock ticks since boot
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time() * 1000)
    except psutil.Error:
        return None


def is_alive(identity: str) -> bool:
    """True while the process of that `process_id` lives."""
    pid, _, _ = identity.partition("-")
    return pid.isdecimal() and process_id(int(pid)) == identity


# --- entering --------------------------------------------------------------------------------------------------------


def enter(folder: Path) -> None:
    """Make this process keep its metrics in that folder, made if missing. Call it in each worker before the first metric is made.

    The folder belongs to one start of one service: two services in one folder would add up as one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[VARIABLE] = str(folder)
    from prometheus_client import values

    values.ValueClass = values.MultiProcessValue(_Identity())  # type: ignore[no-untyped-call]


class _Identity:
    """This process's id, asked by prometheus_client before every single change of a value: no system call unless the process forked."""

    def __init__(self) -> None:
        self._identity = ""
        if hasattr(os, "register_at_fork"):  # a system call for each change took a fifteenth of the event loop's time
            os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> str:
        if not self._identity:
            identity = process_id(os.getpid())
            assert identity is not None, "a process that runs is alive"
            self._identity = identity
        return self._identity

    def _forget(self) -> None:
        self._identity = ""


# --- reading ---------------------------------------------------------------------------------------------------------


def collect(folder: Path) -> list[Metric]:
    """Every metric of every worker of that folder added up, the dead swept first. Reads files: not for an event loop."""
    from prometheus_client.multiprocess import MultiProcessCollector

    with _locked(folder):
        _sweep(folder)
        # A file is created empty and grown a moment later; prometheus_client cannot read it in between.
        files = [str(path) for path in sorted(folder.glob("*.db")) if path.stat().st_size > 0]
        return list(MultiProcessCollector.merge(files, accumulate=True))  # type: ignore[no-untyped-call]


def sweep(folder: Path) -> None:
    """Fold the files of dead processes away; several processes may do so at once."""
    with _locked(folder):
        _sweep(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One sweeper or reader at a time, over processes and threads; the kernel frees the lock of a process that dies."""
    with (folder / _LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # said aloud: a child forked meanwhile holds a copy of the descriptor


# --- folding ---------------------------------------------------------------------------------------------------------


def _sweep(folder: Path) -> None:
    _finish(folder)
    dead: dict[str, list[Path]] = defaultdict(list)
    for path in folder.glob("*.db"):
        kind, _, identity = path.stem.rpartition("_")
        if identity != FOLDED and not is_alive(identity):
            dead[kind].append(path)
    if not dead:
        return
    replace: list[str] = []
    for kind, files in dead.items():
        if kind.startswith(("gauge_live", "gauge_all")):
            continue
        target = folder / f"{kind}_{FOLDED}.db"
        _write(target.with_suffix(".new"), _fold(kind, [target, *files] if target.exists() else files))
        replace.append(target.name)
    plan = {"replace": replace, "remove": [path.name for files in dead.values() for path in files]}
    draft = folder / f"{_JOURNAL}.new"
    draft.write_text(json.dumps(plan), encoding="utf-8")
    draft.replace(folder / _JOURNAL)  # from here on the fold counts as done
    _finish(folder)


def _finish(folder: Path) -> None:
    """Carry out the journal, if there is one; every step may have been done before.

    A fold that died before its journal stood needs no undoing: the dead are still there, and the next fold writes over its drafts.
    """
    journal = folder / _JOURNAL
    if not journal.exists():
        return
    plan = json.loads(journal.read_text(encoding="utf-8"))
    for name in plan["replace"]:
        draft = (folder / name).with_suffix(".new")
        if draft.exists():
            draft.replace(folder / name)
    for name in plan["remove"]:
        (folder / name).unlink(missing_ok=True)
    journal.unlink()


def _fold(kind: str, files: Iterable[Path]) -> dict[str, tuple[float, float]]:
    """Value and timestamp of every series over those files, as prometheus_client would merge them."""
    from prometheus_client.mmap_dict import MmapedDict

    folded: dict[str, tuple[float, float]] = {}
    for path in files:
        try:
            values = list(MmapedDict.read_all_values_from_file(str(path)))  # type: ignore[no-untyped-call]
            for key, *_ in values:
                json.loads(key)  # a key that cannot be read would break every later reading
        except (RuntimeError, ValueError, struct.error, OSError) as error:
            logger.warning("metrics of a dead process are lost: %s is damaged (%s)", path.name, error)
            continue
        for key, value, timestamp, _ in values:
            folded[key] = _combine(kind, folded[key], (value, timestamp)) if key in folded else (value, timestamp)
    return folded


def _combine(kind: str, one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    match kind:
        case "gauge_max":
            return max(one, other)
        case "gauge_min":
            return min(one, other)
        case "gauge_mostrecent":
            return max(one, other, key=lambda item: item[1])
        case _:  # counter, histogram, summary, gauge_sum
            return one[0] + other[0], 0.0


def _write(path: Path, values: dict[str, tuple[float, float]]) -> None:
    from prometheus_client.mmap_dict import MmapedDict

    path.unlink(missing_ok=True)
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for key, (value, timestamp) in values.items():
        file.write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]
