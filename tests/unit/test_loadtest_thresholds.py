"""Which thresholds a run missed."""

from __future__ import annotations

import pytest

from loadtest.thresholds import Limits, Run, missed


def run(requests: int = 1000, failures: int = 0, lasted_s: float = 10, p99_ms: float = 300) -> Run:
    return Run(requests=requests, failures=failures, lasted_s=lasted_s, p99_ms=p99_ms)


EVERY = Limits(max_p99_ms=300, max_error_rate=0.1, min_rps=90)


def test_nothing_is_missed_at_the_limits_themselves() -> None:
    assert missed(EVERY, run(failures=100)) == []
    assert missed(Limits(), run(failures=999)) == []


@pytest.mark.parametrize(
    ("limits", "of", "line"),
    [
        (Limits(max_p99_ms=300), run(p99_ms=300.3), "p99 is 300.3 ms, above 300"),
        (Limits(max_error_rate=0.1), run(failures=101), "0.1010 of the requests failed, more than 0.1"),
        (Limits(min_rps=90), run(failures=101), "89.9 answered requests a second, fewer than 90"),
    ],
)
def test_each_says_what_came_and_what_was_asked(limits: Limits, of: Run, line: str) -> None:
    assert missed(limits, of) == [line]


@pytest.mark.parametrize("requests", [0, 57])
def test_all_are_missed_where_no_request_succeeded(requests: int) -> None:
    lenient = Limits(max_p99_ms=60000, max_error_rate=1, min_rps=0)
    assert missed(lenient, run(requests, requests, p99_ms=0)) == [
        f"{threshold}, but none of {requests} requests succeeded"
        for threshold in ("max_p99_ms is 60000", "max_error_rate is 1", "min_rps is 0")
    ]
    assert missed(Limits(), run(requests, requests, p99_ms=0)) == []
