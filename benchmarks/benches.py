"""The benches there are, a plan each."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.estimate import fitted
from benchmarks.plan import ALL, CLOSED, Case, Plan
from benchmarks.systems import BY_NAME, SYSTEMS, System


def complete(*, minutes: float, rounds: int, systems: Sequence[str] = ()) -> Plan:
    """`make bench`."""
    plan = Plan("bench", rounds, min(2, rounds), ALL, systems=_chosen(systems), even=False)
    return fitted(plan, minutes)


def whole_grid(*, seconds: float, rounds: int, systems: Sequence[str] = ()) -> Plan:
    """`make bench-full`."""
    return Plan(
        "full",
        rounds,
        rounds,
        ALL,
        systems=_chosen(systems),
        closed=(*CLOSED, 256),
        highest=None,
        all_open=True,
        grid=True,
        seconds=seconds,
    )


def quick(*, rounds: int, seconds: float) -> Plan:
    """`make bench-quick`."""
    systems = (BY_NAME["default"], BY_NAME["batchable"])
    cases: tuple[Case, ...] = ("resnet50", "near_empty")
    return Plan(
        "quick", rounds, 0, cases, systems, closed=(1, 8, 32), open=(), highest=None, judged=False, memory=False, starts=4, seconds=seconds
    )


def smallest(*, seconds: float, system: str) -> Plan:
    """One system, one case, two loads, and the starts: whether the bench itself works."""
    return Plan(
        "smallest",
        1,
        1,
        ("near_empty",),
        (BY_NAME[system],),
        closed=(1, 8),
        open=(50,),
        highest=None,
        memory=False,
        starts=1,
        patience_s=0,
        seconds=seconds,
    )


def _chosen(names: Sequence[str]) -> tuple[System, ...]:
    if unknown := [name for name in names if name not in BY_NAME]:
        raise ValueError(f"no system {unknown[0]!r}: expected some of {', '.join(system.name for system in SYSTEMS)}")
    return tuple(system for system in SYSTEMS if not names or system.name in names)
