"""What the answers of one loop come to: how many a second, how late, how many failed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

OK = 200
EDGE = 0.1  # of a window, at either end: where a pause is looked for. Longer than the answers of a batch take to come in: resnet50's, 4 ms


@dataclass(frozen=True, slots=True)
class Counted:
    """One loop's figures. Times are of answers with status 200, in ms; 0 where there is none."""

    requests_per_s: float  # answered with 200; closed loop: between two answers, see `answer_rate`
    offered_per_s: float  # open loop: requests that were due; closed loop: requests answered, refusals included
    p50_ms: float
    p99_ms: float
    answered: int
    failed: float  # share of the requests, 0 to 1
    statuses: dict[str, int]  # of answers; "none" where there was no answer


@dataclass(slots=True)
class Tally:
    """What came back so far."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, status: int | None, seconds: float) -> None:
        """Count one request."""
        self.statuses["none" if status is None else str(status)] += 1
        if status == OK:
            self.seconds.append(seconds)

    def counted(self, window_s: float) -> Counted:
        """The figures of a window of that length."""
        ordered, total = sorted(self.seconds), sum(self.statuses.values())
        return Counted(
            requests_per_s=len(ordered) / window_s,
            offered_per_s=total / window_s,
            p50_ms=percentile(ordered, 0.5) * 1000,
            p99_ms=percentile(ordered, 0.99) * 1000,
            answered=len(ordered),
            failed=1 - len(ordered) / total if total else 1.0,
            statuses=dict(self.statuses),
        )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the ordered values do not exceed (the nearest rank); 0 of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def answer_rate(answers: Sequence[float], begin: float, end: float) -> float:
    """Answers a second, from one at the window's begin that had a pause after it to one such at its end.

    Answers come in batches: between any other two moments a whole batch more or less would fall in, or a part of one. `answers` are
    moments in order, the loop's own start before them. Of a service that fell silent for half of the window, those in it by its length.
    """
    edge = EDGE * (end - begin)
    first, last = _paused(answers, begin, begin + edge), _paused(answers, end - edge, end)
    if first < last and answers[last] > (begin + end) / 2:
        return (last - first) / (answers[last] - answers[first])
    return (bisect_right(answers, end) - bisect_right(answers, begin)) / (end - begin)


def _paused(answers: Sequence[float], begin: float, end: float) -> int:
    """Of the last answer before that stretch and those in it the one with the longest pause after it."""
    near = range(bisect_right(answers, begin) - 1, bisect_right(answers, end))
    return max(near, key=lambda index: answers[min(index + 1, len(answers) - 1)] - answers[index])
