"""Refusals: every one is told, and many are many for a while only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ortserve import refusal_count
from ortserve.errors import QueueFull, RequestError
from ortserve.refusal_count import LASTS_S, MANY, WINDOW_S, RefusalCount


def test_those_that_pass_through_and_those_that_were_told_elsewhere_are_counted() -> None:
    told: list[tuple[str, int]] = []
    observer: Any = SimpleNamespace(refused=lambda reason, times: told.append((reason, times)))
    found = RefusalCount(observer)
    for error in (QueueFull("full", retry_after_s=1), RequestError("not ours to count")):
        with pytest.raises(type(error)), found:
            raise error
    with found:
        pass
    found.count("deadline_exceeded", 3)
    assert told == [("queue_full", 1), ("deadline_exceeded", 3)]


def test_many_in_a_window_are_many_until_the_next_ones_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(refusal_count.time, "monotonic", lambda: now[0])
    found = RefusalCount(None)
    for _ in range(3):  # windows with as many as are not many
        found.count("queue_full", MANY)
        assert not found.many()
        now[0] += WINDOW_S
    found.count("queue_full", MANY)
    now[0] += WINDOW_S / 2
    with pytest.raises(QueueFull), found:
        raise QueueFull("full", retry_after_s=1)
    assert found.many()
    now[0] += LASTS_S * 0.9
    assert found.many()
    now[0] += LASTS_S * 0.2
    assert not found.many()
