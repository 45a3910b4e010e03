"""What was measured of one way of running, and which of two is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ortserve.tune.space import Objective

MOST_FAILED = 0.01  # of the open loop's requests: whoever refuses more at that load is no way to run
LOAD_SHARE = {"throughput": 0.8, "latency": 0.5}  # of capacity, in the open loop: a busy service; one with room to answer at once


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement's. Of the closed loop: the capacity and its median. Of the open loop: the rate, the waiting, what failed."""

    requests_per_s: float
    closed_p50_ms: float
    rate: float
    p50_ms: float
    p99_ms: float
    failed: float
    answered: int  # in both loops

    def text(self) -> str:
        """In one line."""
        failed = f", {self.failed:.1%} failed" if self.failed else ""
        return f"{self.requests_per_s:.1f} requests/s; at {self.rate:.1f}/s p50 {self.p50_ms:.1f}, p99 {self.p99_ms:.1f} ms{failed}"


@dataclass(frozen=True, slots=True)
class Goal:
    """What the user wants: the most requests, or the shortest answers; with `p99_ms` only where 99 of 100 answers are ready within it."""

    objective: Objective
    p99_ms: float | None = None

    def rank(self, figures: Figures) -> tuple[bool, float]:
        """The smaller the better. Whoever keeps the limits comes before whoever does not, who is ranked by how late it answers."""
        kept = self.kept(figures)
        if self.objective == "throughput" and kept:
            return False, -figures.requests_per_s
        # A short measurement's p99 is its one slowest answer: the median steadies it.
        return not kept, math.sqrt(figures.p50_ms * figures.p99_ms) if figures.answered else math.inf

    def kept(self, figures: Figures) -> bool:
        """Whether the limits are kept at the open loop's rate."""
        return figures.failed <= MOST_FAILED and (self.p99_ms is None or figures.p99_ms <= self.p99_ms)


def medians(several: Sequence[Figures]) -> Figures:
    """The median of each figure; the answers are added up."""
    middle = {
        name: median(getattr(one, name) for one in several)
        for name in ("requests_per_s", "closed_p50_ms", "rate", "p50_ms", "p99_ms", "failed")
    }
    return Figures(**middle, answered=sum(one.answered for one in several))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Of (requests/s, p99) points the indices that no other point beats in both: the Pareto front, by rising requests/s."""
    order = sorted(range(len(points)), key=lambda index: (-points[index][0], points[index][1]))
    kept: list[int] = []
    for index in order:
        if not kept or points[index][1] < points[kept[-1]][1]:
            kept.append(index)
    return kept[::-1]
