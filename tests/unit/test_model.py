"""What a served model lets in while its queue is nearly full."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ortserve import arrivals, profile
from ortserve.errors import QueueFull
from ortserve.model import ServedModel
from tests.held_session import FAR_S, Held, settings
from tests.runners import engine_of


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_no_more_are_let_in_at_their_heads_than_there_will_be_places_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "SOON_S", FAR_S)
    refused: list[str] = []
    observer: Any = SimpleNamespace(refused=refused.append)
    package: dict[str, Any] = {"manifest": SimpleNamespace(name="x"), "version": "1", "task": None, "profile": profile.load("default")}

    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(held=False), settings(max_queue_size=4)) as (engine, _):
            served = ServedModel(engine=engine, observer=observer, **package)
            for _ in range(4):
                served.let_in()
            with pytest.raises(QueueFull, match="4 wait"):
                served.let_in()
            assert refused == ["queue_full"]
            served.expect_room()  # for one whose body is here: nobody has taken a place yet
            served.came()
            (place,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            with place, pytest.raises(QueueFull):
                served.let_in()  # the place of the one that came, and those of three on their way
            served.came()
            served.let_in()
            await asyncio.to_thread(served._decoders.close)

    asyncio.run(asyncio.wait_for(test(), 30))
