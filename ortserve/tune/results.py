"""What a search found, read from its journal: each candidate's longest trial, the comparison in turns, and the winner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from ortserve.tune.candidate import Candidate, Data
from ortserve.tune.journal import Journal
from ortserve.tune.objective import Figures, Goal, medians

FEWEST_ROUNDS = 3  # by chance alone one of two equals is ahead in all of three once in eight times; of five, once in 32


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the CSV."""

    id: str
    label: str
    shipped: str
    rung: int
    seconds: float
    data: Data
    figures: Figures | None
    reason: str
    agreement: float | None


@dataclass(frozen=True, slots=True)
class Contender:
    """One of the final comparison: its figures round by round, and their medians."""

    candidate: Candidate
    rounds: tuple[Figures, ...]

    @property
    def middle(self) -> Figures:
        """The medians of its rounds."""
        return medians(self.rounds)


def trials(journal: Journal) -> list[Trial]:
    """Every trial, in the order in which they were made."""
    return [
        Trial(
            id=entry["id"],
            label=entry["label"],
            shipped=entry["shipped"],
            rung=entry["rung"],
            seconds=entry["seconds"],
            data=entry["data"],
            figures=Figures(**entry["figures"]) if entry["figures"] else None,
            reason=entry["reason"],
            agreement=entry["agreement"],
        )
        for entry in journal.entries
        if entry["kind"] == "trial"
    ]


def longest(made: Sequence[Trial]) -> list[Trial]:
    """Of each candidate its longest trial, where all of them were answered."""
    by_id: dict[str, Trial] = {}
    for trial in made:
        if (other := by_id.get(trial.id)) is None or (trial.rung > other.rung or trial.figures is None):
            by_id[trial.id] = trial
    return [trial for trial in by_id.values() if trial.figures is not None]


def winner(contenders: Sequence[Contender], goal: Goal) -> Contender:
    """The objective's own profile, unless another is ahead of it in every round: a lead that one round turns is no larger than chance.

    Or unless another keeps the limits where it does not. So of the other shipped profiles, the best first; then of what the search found.
    """

    def order(one: Contender) -> tuple[bool, bool, tuple[bool, float]]:
        return one.candidate.shipped != goal.objective, not one.candidate.shipped, goal.rank(one.middle)

    return reduce(lambda champion, other: other if _ahead(other, champion, goal) else champion, sorted(contenders, key=order))


def _ahead(one: Contender, other: Contender, goal: Goal) -> bool:
    if goal.kept(one.middle) and not goal.kept(other.middle):
        return True
    pairs = list(zip(one.rounds, other.rounds, strict=True))
    return len(pairs) >= FEWEST_ROUNDS and all(goal.rank(its) < goal.rank(others) for its, others in pairs)
