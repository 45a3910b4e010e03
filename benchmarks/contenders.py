"""Which peers go on after the first round: whoever is near the best in anything a target compares. Nobody is left out by opinion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.figures import ByRound, Figures
from benchmarks.systems import SYSTEMS

PEERS = tuple(system.name for system in SYSTEMS if system.kind in ("peer", "reference"))
NEAR = 0.9  # of the best: one round of one machine tells no smaller difference from chance


def contenders(figures: Figures, case: str, callers: Sequence[int]) -> list[str]:
    """Peers that the first round had near the best rate at any of the `callers`, or with the least CPU time or memory of all."""
    near: set[str] = set()
    for load in (f"closed {number}" for number in callers):
        rates = _first(figures, case, load, "requests_per_s")
        near |= {name for name, rate in rates.items() if rate >= NEAR * max(rates.values())}
        near |= _least(_first(figures, case, load, "server_cpu_s_per_request"), rates)
        near |= _least(_first(figures, case, load, "pss_mib"), rates)
    return [name for name in PEERS if name in near]


def in_every_round(figures: Mapping[str, ByRound]) -> dict[str, ByRound]:
    """Those of the peers' figures that are of every round: the best of more peers in one round than in another is no ratio of one run."""
    rounds = max((len(of_one) for of_one in figures.values()), default=0)
    return {name: of_one for name, of_one in figures.items() if of_one and len(of_one) == rounds}


def _first(figures: Figures, case: str, load: str, figure: str) -> dict[str, float]:
    found = {name: figures.of(case, name, load, figure) for name in PEERS}
    return {name: of_one[0] for name, of_one in found.items() if 0 in of_one}


def _least(values: Mapping[str, float], rates: Mapping[str, float]) -> set[str]:
    """The name with the least, of those that answered."""
    answered = {name: value for name, value in values.items() if rates.get(name, 0) > 0}
    return {min(answered, key=answered.__getitem__)} if answered else set()
