"""Which processes of this service must live: a mark of each in the run folder, which one that died without leave has left behind.

In a container BentoML starts no worker again (`respawn=not running_inside_container()`): whoever runs the container has to, and learns
of it by `/livez`. Outside a container BentoML starts another, and a lost worker is no reason to end the others.
"""

from __future__ import annotations

import os
from pathlib import Path

from ortserve import multiprocess


class Liveness:
    """The marks of one service's processes: its workers, and any other process it cannot do without."""

    def __init__(self, folder: Path, *, replaced: bool) -> None:
        self._folder = folder / "must_live"
        self._folder.mkdir(exist_ok=True)
        self._mark = self._folder / (multiprocess.process_id(os.getpid()) or "")
        self._replaced = replaced

    def enter(self) -> None:
        """From here on this process must live."""
        self._mark.touch()

    def leave(self) -> None:
        """This process ends in order."""
        self._mark.unlink(missing_ok=True)

    def lost(self) -> int:
        """How many processes are gone for good; 0 where BentoML starts others in their place."""
        return 0 if self._replaced else sum(not multiprocess.is_alive(mark.name) for mark in self._folder.iterdir())
