"""When the open loop's requests are due: as often as the level says at each moment, by chance alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from loadtest.levels import level
from loadtest.timetable import following
from tests.unit.test_loadtest_levels import Options

SECONDS, RATE_PER_S, SOURCES = 100, 200.0, 200  # each source sends one a second: a gap is as long as what changes here


def arrivals(share: Callable[[float], float]) -> list[int]:
    """How many requests of all sources are due in each second."""
    chance = random.Random(1)
    counts = [0] * SECONDS
    for _ in range(SOURCES):
        due_s, sends = following(0.0, RATE_PER_S / SOURCES, share, chance)
        while due_s < SECONDS:
            counts[int(due_s)] += sends
            due_s, sends = following(due_s, RATE_PER_S / SOURCES, share, chance)
    return counts


@pytest.mark.parametrize(
    "options",
    [
        Options("constant"),
        Options("ramp", ramp_s=60),
        Options("spike", spike_after_s=40, spike_s=10, spike_base=0.05),
        Options("spike", spike_after_s=40, spike_s=10, spike_base=0),
    ],
)
def test_requests_follow_the_level(options: Options) -> None:
    counts = arrivals(lambda elapsed_s: level(options, elapsed_s))
    for start_s in range(0, SECONDS, 10):
        expected = RATE_PER_S * sum(level(options, start_s + (step + 0.5) / 10) for step in range(100)) / 10
        assert sum(counts[start_s : start_s + 10]) == pytest.approx(expected, abs=4 * expected**0.5)


def test_they_come_by_chance_with_the_variance_of_a_poisson_process() -> None:
    counts = arrivals(lambda _: 0.5)
    mean = sum(counts) / SECONDS
    assert sum((count - mean) ** 2 for count in counts) / (SECONDS - 1) == pytest.approx(mean, rel=0.3)
