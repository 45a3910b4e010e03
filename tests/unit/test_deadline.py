"""What is expected in turn, by a loop's clock that is moved by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ortserve.deadline import Deadline


@dataclass
class Timer:
    at: float
    call: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Loop:
    """An event loop's clock and timers."""

    now: float = 0.0
    timers: list[Timer] = field(default_factory=list)

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.now + seconds, call))
        return self.timers[-1]

    def move(self, now: float) -> None:
        """On to that moment, by way of every timer until then."""
        while due := sorted((one for one in self.timers if not one.cancelled and one.at <= now), key=lambda one: one.at):
            self.timers.remove(due[0])
            self.now = due[0].at
            due[0].call()
        self.now = now


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def late() -> list[float]:
    """When something was late."""
    return []


@pytest.fixture
def deadline(loop: Loop, late: list[float]) -> Deadline:
    of: Any = loop
    return Deadline(of, lambda: late.append(loop.now))


def test_what_does_not_come_is_late_once(loop: Loop, late: list[float], deadline: Deadline) -> None:
    deadline.expect(5)
    assert deadline.expects
    loop.move(100)
    assert late == [5]
    assert not deadline.expects
    assert not loop.timers


def test_what_comes_is_forgotten(loop: Loop, late: list[float], deadline: Deadline) -> None:
    deadline.expect(5)
    deadline.forget()
    assert not deadline.expects
    loop.move(100)
    assert late == []


def test_only_the_last_is_expected_whether_sooner_or_later(loop: Loop, late: list[float], deadline: Deadline) -> None:
    deadline.expect(30)
    loop.move(1)
    deadline.expect(5)
    loop.move(2)
    deadline.expect(30)
    loop.move(100)
    assert late == [32]
    deadline.expect(30)
    deadline.expect(5)
    loop.move(200)
    assert late == [32, 105]


def test_one_timer_serves_many(loop: Loop, late: list[float], deadline: Deadline) -> None:
    for moment in range(100):
        loop.move(moment / 10)
        deadline.expect(5)
        deadline.forget()
        deadline.expect(30)
        deadline.expect(5)
        assert len([one for one in loop.timers if not one.cancelled]) == 1
    assert len(loop.timers) <= 3
    assert late == []


def test_at_the_end_nothing_is_left(loop: Loop, late: list[float], deadline: Deadline) -> None:
    deadline.expect(5)
    deadline.close()
    loop.move(100)
    assert late == []
    assert all(one.cancelled for one in loop.timers)
