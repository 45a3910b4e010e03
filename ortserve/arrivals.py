"""Requests on their way from the head to the queue."""

from __future__ import annotations

import time
from collections import deque

SOON_S = 0.1  # a body that comes at once is here by then, also in an event loop that is behind; a slow one holds a connection, not a place


class Arrivals:
    """Those let in at their heads whose bodies are not here yet: each will want a place, so that what looks free is not.

    Without them every head that comes before a free place is taken would pass, and past capacity many be refused only once their bodies
    were read. In the event loop's thread alone.
    """

    def __init__(self) -> None:
        self._since: deque[float] = deque()  # when each was let in, `time.monotonic()` seconds

    def expect(self) -> None:
        """One more was let in."""
        self._since.append(time.monotonic())

    def came(self) -> None:
        """One of them is here, or will not come. Nothing where none is expected any more."""
        if self._since:
            self._since.popleft()

    def __len__(self) -> int:
        """How many are expected at any moment now."""
        soon = time.monotonic() - SOON_S
        while self._since and self._since[0] < soon:
            self._since.popleft()
        return len(self._since)
