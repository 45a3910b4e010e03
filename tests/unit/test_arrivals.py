"""Requests between their heads and the queue."""

from __future__ import annotations

import pytest

from ortserve import arrivals
from ortserve.arrivals import SOON_S, Arrivals


def test_they_are_expected_until_they_come_or_for_a_short_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(arrivals.time, "monotonic", lambda: now[0])
    expected = Arrivals()
    expected.came()  # one that was not let in here
    assert len(expected) == 0
    expected.expect()
    now[0] += SOON_S / 2
    expected.expect()
    assert len(expected) == 2
    now[0] += 0.6 * SOON_S
    assert len(expected) == 1  # whoever sends slowly holds no place
    expected.came()
    expected.came()
    assert len(expected) == 0
