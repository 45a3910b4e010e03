"""Refusals of one model as they are told: each is counted, and whether there are many now is known."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from ortserve.errors import ServingError

MANY_PER_S = 1000  # as many take some tenth of a CPU, which is the event loop's
WINDOW_S = 0.02
MANY = round(MANY_PER_S * WINDOW_S)  # in a window
LASTS_S = 0.04  # that they count as many after that: until the next windows tell


class Observer(Protocol):
    """Who hears of them."""

    def refused(self, reason: str, times: int = 1) -> None:
        """A payload, or so many, were not answered; `reason` is the error's code."""


class RefusalCount:
    """As a context manager it counts a ServingError that passes through, any number of times. In the event loop's thread alone."""

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer
        self._lately = 0
        self._window_ends = 0.0  # `time.monotonic()` seconds, as the next
        self._many_until = 0.0

    def count(self, reason: str, times: int = 1) -> None:
        """So many were refused; `reason` is the error's code."""
        now = time.monotonic()
        if now >= self._window_ends:
            self._lately, self._window_ends = 0, now + WINDOW_S
        self._lately += times
        if self._lately > MANY:
            self._many_until = now + LASTS_S
        if self._observer:
            self._observer.refused(reason, times)

    def many(self) -> bool:
        """Whether there are so many now that the event loop has to hurry."""
        return time.monotonic() < self._many_until

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, ServingError):
            self.count(error.code)
