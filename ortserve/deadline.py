"""Until when something has to come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Deadline:
    """One timer for all that is expected in turn: to set and cancel one costs more than to look at a clock, and most come in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[], object]) -> None:
        """`late` is called where what is expected did not come; nothing is expected after that."""
        self._loop = loop
        self._late = late
        self._due: float | None = None  # by the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = 0.0  # when it comes

    @property
    def expects(self) -> bool:
        """Whether anything is expected."""
        return self._due is not None

    def expect(self, within_s: float) -> None:
        """From now on this, in place of whatever was expected."""
        self._due = self._loop.time() + within_s
        if self._timer is None or self._looks_at > self._due:
            self._look_in(within_s)

    def forget(self) -> None:
        """Nothing is expected."""
        self._due = None

    def close(self) -> None:
        """As `forget`, at the end: the timer is gone too."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """Whether what is expected is late. Where it is not due yet, look again then; where nothing is expected, no more."""
        self._timer = None
        if self._due is None:
            return
        if (left_s := self._due - self._loop.time()) > 0:
            self._look_in(left_s)
        else:
            self._due = None
            self._late()
