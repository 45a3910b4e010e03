"""Refusals go out at once while they are few; the others when their tick ends, in order and all together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from ortserve import pacing
from ortserve.pacing import AT_ONCE, Pace


@dataclass
class Caller:
    """Notes what it is told."""

    told: list[bytes]

    def tell(self, reply: bytes) -> None:
        self.told.append(reply)


async def ticks(count: float) -> None:
    await asyncio.sleep(count * pacing.TICK_S)


def test_few_go_out_at_once_and_the_others_with_the_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "TICK_S", 0.2)

    async def refuse() -> None:
        pace, told = Pace(), list[bytes]()
        for _ in range(2):  # each tick begins anew
            held = [pace.hold(Caller(told), b"%d" % number) for number in range(AT_ONCE + 3)]
            assert held == [False] * AT_ONCE + [True] * 3
            assert told == []
            await ticks(1.5)
            assert told == [b"%d" % (AT_ONCE + number) for number in range(3)]
            told.clear()

    asyncio.run(refuse())


def test_where_nobody_is_refused_nothing_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "TICK_S", 0.01)

    async def refuse() -> None:
        pace = Pace()
        pace.hold(Caller([]), b"")
        assert pace._tick is not None
        await ticks(5)
        assert pace._tick is None

    asyncio.run(refuse())
