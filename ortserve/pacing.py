"""How fast refusals go out: a few at once, and whoever comes on top of these a moment later.

A caller who is refused and asks again at once, as often as it can, takes the CPUs from those who were let in. One who is told a hundredth
of a second later asks a hundred times a second at most.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from ortserve.refusal_count import MANY_PER_S

TICK_S = 0.01  # half of what a refusal may take
AT_ONCE = round(MANY_PER_S * TICK_S)  # in each tick: whoever is refused among so few is told at once


class Refused(Protocol):
    """A connection whose refusal waits."""

    def tell(self, reply: bytes) -> None:
        """Send it now."""


class Pace:
    """Says which refusals go out at once, and sends the others when their tick ends. In the event loop's thread alone."""

    def __init__(self) -> None:
        self._left = AT_ONCE
        self._held: list[tuple[Refused, bytes]] = []
        self._tick: asyncio.TimerHandle | None = None

    def hold(self, refused: Refused, reply: bytes) -> bool:
        """Whether `refused` is told at the end of this tick; False: it may be told at once."""
        if self._tick is None:
            self._left = AT_ONCE
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._end)
        if self._left:
            self._left -= 1
            return False
        self._held.append((refused, reply))
        return True

    def _end(self) -> None:
        self._tick = None
        held, self._held = self._held, []
        for refused, reply in held:
            refused.tell(reply)
