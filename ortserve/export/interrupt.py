"""Ctrl-C of a build, which its libraries lose now and then: one that is raised in a callback of the interpreter's ends nothing."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Interrupt:
    """A context manager: inside, SIGINT raises KeyboardInterrupt as ever, and is remembered."""

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> Interrupt:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
            signal.signal(signal.SIGINT, self._remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if signal.getsignal(signal.SIGINT) == self._remember:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Nothing, unless SIGINT came and the build went on. Raises KeyboardInterrupt."""
        if self._came:
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        signal.default_int_handler(number, frame)
