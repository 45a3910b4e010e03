"""The times of the answers: the percentile is on the right side of its limit, in bounded memory, however many processes counted."""

from __future__ import annotations

import math
import random

import pytest

from loadtest.times import Times


def counted(limit_ms: float, *took_ms: float) -> Times:
    times = Times(limit_ms)
    for one in took_ms:
        times.add(one)
    return times


@pytest.mark.parametrize("limit_ms", [0.05, 1, 500, 1049, 12345.6])
def test_one_answer_in_a_hundred_may_be_slower_than_the_limit_and_no_more(limit_ms: float) -> None:
    above = math.nextafter(limit_ms * (1 + 1e-12), math.inf)
    assert counted(limit_ms, *[limit_ms] * 198, above, above).p99_ms() == limit_ms
    assert counted(limit_ms, *[limit_ms] * 197, above, above, above).p99_ms() > limit_ms
    assert counted(limit_ms, *[limit_ms] * 98, above).p99_ms() > limit_ms  # of 99 answers none may


def test_the_figure_is_the_percentile_to_a_thousandth() -> None:
    chance = random.Random(1)
    took_ms = [chance.lognormvariate(4, 2) for _ in range(5000)]
    assert counted(500, *took_ms).p99_ms() == pytest.approx(sorted(took_ms)[4949], rel=1e-3)
    assert counted(500, *[1049.0] * 7).p99_ms() == pytest.approx(1049, rel=1e-3)  # 1000 in locust's figures


def test_the_master_counts_what_every_worker_counted_once() -> None:
    master, workers = Times(500), (counted(500, *[100.0] * 98), counted(500, 900.0, 900.0))
    for worker in (*workers, *workers):  # a second report, of nothing new
        master.merge(worker.take())
    assert master.p99_ms() == pytest.approx(900, rel=1e-3)
    master.merge(counted(500, *[100.0] * 100).take())
    assert master.p99_ms() == pytest.approx(100, rel=1e-3)


def test_it_stays_small() -> None:
    times = counted(500, 0.0, *(10 ** (step / 10000) for step in range(-40000, 80000)))  # a tenth of a microsecond to a day
    assert len(times.take()) < 30_000
    assert times.p99_ms() == 0
