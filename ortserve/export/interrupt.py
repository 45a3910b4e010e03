"""Ctrl-C of a build, which its libraries lose now and then: one that is raised in a callback of the interpreter's ends nothing."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupt:
    """A context manager: inside, SIGINT raises KeyboardInterrupt as ever, and is remembered."""

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> Interrupt:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is signal.default_int_handler:  # a job in the background ignores it
            signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Nothing, unless SIGINT came and the build went on. Raises KeyboardInterrupt."""
        if self._came:
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        signal.default_int_handler(number, frame)
