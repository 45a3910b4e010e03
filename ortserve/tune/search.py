"""The search: short measurements of many, longer ones of the better half, until few are left; then around the best of them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ortserve.tune.candidate import Candidate
from ortserve.tune.objective import Figures, Goal
from ortserve.tune.space import Space

RUNGS = 3  # each is measured twice as long as the one before, and by half as many


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trial: figures, or the reason why there are none."""

    candidate: Candidate
    rung: int
    figures: Figures | None
    reason: str = ""


class Bench(Protocol):
    """Whoever measures."""

    def measure(self, candidate: Candidate, rung: int) -> Outcome | None:
        """The trial at that rung; None where the time is up."""
        ...

    def known(self, candidate: Candidate) -> bool:
        """Whether it was measured before an interrupt, so that it costs nothing now."""
        ...

    def room(self) -> int:
        """How many fresh candidates the time that is left can take through all rungs."""
        ...


def search(space: Space, baselines: Sequence[Candidate], goal: Goal, bench: Bench) -> list[Outcome]:
    """The best outcome of each candidate that answered, the best first, those measured longest before all others.

    Round 1 turns one knob at a time. Every further round starts from the best so far and from what helped alone, so that what helps
    together is found without measuring every combination. It ends with the time, or when nothing near the best is left unmeasured.
    """
    tried = _Tried(goal, bench)
    chosen: dict[str, dict[str, str]] = {}  # candidate id -> its choices
    gains: dict[tuple[str, str], tuple[bool, float]] = {}
    best: dict[str, str] = {}
    tried.begin(baselines)
    fresh = [{knob: label} for knob, label in space.singles()]
    first = True
    while not tried.out_of_time:
        pool: dict[str, Candidate] = {}
        for choices in fresh:
            candidate = space.candidate(choices)
            if candidate.id not in tried.seen and candidate.id != space.base.id and candidate.id not in pool:
                pool[candidate.id] = candidate
                chosen[candidate.id] = choices
        if not pool:
            break
        room = bench.room()
        costly = [one for one in pool.values() if not bench.known(one)]
        left_out = {one.id for one in costly[max(1, room * 2 // 3 if first else room) :]}  # a third is for what the first round teaches
        wanted = [one for one in pool.values() if one.id not in left_out]
        tried.halve([*(baselines if first else tried.leaders()), *wanted])
        if first:
            gains = {next(iter(chosen[one.id].items())): goal.rank(figures) for one in wanted if (figures := tried.first(one)) is not None}
            first = False
        ranked = tried.ranked()
        best = next((chosen[outcome.candidate.id] for outcome in ranked if outcome.candidate.id in chosen), {})
        fresh = list(_next(space, best, gains))
    return tried.ranked()


class _Tried:
    """Everything that was measured."""

    def __init__(self, goal: Goal, bench: Bench) -> None:
        self._goal = goal
        self._bench = bench
        self._by_id: dict[str, dict[int, Outcome]] = {}
        self.out_of_time = False

    @property
    def seen(self) -> frozenset[str]:
        return frozenset(self._by_id)

    def first(self, candidate: Candidate) -> Figures | None:
        """A candidate's figures at the first rung."""
        outcome = self._by_id.get(candidate.id, {}).get(0)
        return outcome.figures if outcome else None

    def begin(self, pool: Sequence[Candidate]) -> None:
        """The first rung alone: what the time of a trial, and every gain, is known from."""
        self._measure(pool, 0)

    def halve(self, pool: Sequence[Candidate]) -> None:
        """Successive halving (Jamieson and Talwalkar, 2016). Shipped profiles stay to the end: they are what the others must beat."""
        for rung in range(RUNGS):
            outcomes = self._measure(pool, rung)
            if self.out_of_time:
                return
            ranked = self._sorted(outcome for outcome in outcomes if outcome.figures is not None)
            kept = ranked[: max(1, (len(ranked) + 1) // 2)]
            pool = [outcome.candidate for outcome in ranked if outcome in kept or outcome.candidate.shipped]

    def _measure(self, pool: Sequence[Candidate], rung: int) -> list[Outcome]:
        outcomes = []
        for candidate in pool:
            known = self._by_id.setdefault(candidate.id, {})
            outcome = known.get(rung) or self._bench.measure(candidate, rung)
            if outcome is None:
                self.out_of_time = True
                if not known:
                    del self._by_id[candidate.id]
                break
            known[rung] = outcome
            outcomes.append(outcome)
        return outcomes

    def leaders(self) -> list[Candidate]:
        """Those that reached the last rung: what a further round is compared with, at no cost."""
        return [rungs[0].candidate for rungs in self._by_id.values() if (last := rungs.get(RUNGS - 1)) is not None and last.figures]

    def ranked(self) -> list[Outcome]:
        """The longest measurement of each candidate that answered every time."""
        longest = [rungs[max(rungs)] for rungs in self._by_id.values() if all(outcome.figures is not None for outcome in rungs.values())]
        return self._sorted(longest)

    def _sorted(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        def key(outcome: Outcome) -> tuple[int, tuple[bool, float]]:
            assert outcome.figures is not None
            return -outcome.rung, self._goal.rank(outcome.figures)

        return sorted(outcomes, key=key)


def _next(space: Space, best: Mapping[str, str], gains: Mapping[tuple[str, str], tuple[bool, float]]) -> Iterable[dict[str, str]]:
    """What to try around the best: what was best alone of each knob laid together, more and more of it; then one knob turned at a time."""
    by_gain: list[tuple[str, str]] = sorted(gains, key=lambda choice: gains[choice])
    together = dict(best)
    for knob, label in by_gain:
        if knob not in together:
            together[knob] = label
            yield dict(together)
    rest = [choice for choice in space.singles() if choice not in gains]
    for knob, label in [*by_gain, *rest]:
        yield {**best, knob: label}
    for knob in best:
        yield {other: label for other, label in best.items() if other != knob}
