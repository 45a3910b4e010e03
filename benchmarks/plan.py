"""What is measured, in which order, and how long it takes: rounds of sessions, each of one system in one case under several loads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from benchmarks.systems import BY_NAME, SYSTEMS, System

Case = Literal["resnet50", "near_empty", "tensor", "classify_batch", "digits"]
CLOSED = (1, 8, 32, 64)
OPEN = (50, 80, 95, 120, 400)  # per cent of what the same session answered at 32 callers
CONNECTIONS = 512  # the most an open loop opens: as many as a busy proxy in front keeps
# Seconds. What a session costs beside its windows, measured on two CPUs: starting, asking, ending.
SESSION_S = {"resnet50": 7.0, "near_empty": 6.0, "tensor": 7.0, "classify_batch": 7.0, "digits": 6.0}
WARM_UP_S = 1.0
OVERLOAD_S = 12.0  # until the last of an overload is answered
PER_SECOND = {"near_empty": 400.0}  # requests, about: how long 256 callers take to be answered once
# Of resnet50 a window holds a twentieth of the near-empty model's answers: it gets more of the time.
WEIGHTS = {"resnet50": 1.0, "near_empty": 0.5, "tensor": 1.0, "classify_batch": 1.0, "digits": 0.5}
SHORTEST_S = 2.0


@dataclass(frozen=True)
class Load:
    """A closed loop of `callers`, or an open one at `percent` of capacity."""

    callers: int
    percent: int | None = None

    @property
    def key(self) -> str:
        """As results call it."""
        return f"closed {self.callers}" if self.percent is None else f"open {self.percent}"


@dataclass(frozen=True)
class Session:
    """One start of a system: what it is asked there. `part` tells apart sessions of the same system in a round."""

    round: int
    case: Case
    system: str
    part: Literal["closed", "open", "bare", "memory"]
    loads: tuple[Load, ...] = ()
    empty: bool = False

    @property
    def key(self) -> str:
        """As the state calls it."""
        return f"{self.round}/{self.case}/{self.system}/{self.part}{'/empty' if self.empty else ''}"


@dataclass(frozen=True)
class Plan:
    """A whole bench."""

    name: str
    rounds: int
    open_rounds: int
    cases: tuple[Case, ...]
    systems: tuple[System, ...] = SYSTEMS
    closed: tuple[int, ...] = CLOSED
    open: tuple[int, ...] = OPEN
    highest: int | None = 256  # callers, for those under open loop
    all_open: bool = False  # the open loop for every system, not for ours and the two best peers
    grid: bool = False  # every set-up of bare runs
    memory: bool = True
    starts: int = 0  # of this service with `digits` and of an empty one, for their time and memory; the first of each does not count
    seconds: float = field(default=4.0)  # of a window, times its case's weight

    def window_s(self, case: Case) -> float:
        """Seconds of a window."""
        return max(SHORTEST_S if self.seconds >= SHORTEST_S else self.seconds, self.seconds * WEIGHTS[case])

    def closed_sessions(self) -> list[Session]:
        """Every system under closed loops, round by round, after what needs no server."""
        loads = tuple(Load(callers) for callers in self.closed)
        sessions: list[Session] = []
        for turn in range(self.rounds):
            for case in self.cases:
                if case in ("resnet50", "near_empty"):
                    sessions.append(Session(turn, case, "bare", "bare"))
                for system in self.systems:
                    if takes(system, case) and not (system.lesser and turn and turn == self.rounds - 1):
                        sessions.append(Session(turn, case, system.name, "closed", loads))
        return sessions

    def open_sessions(self, best: dict[Case, Sequence[str]]) -> list[Session]:
        """Ours and the `best` peers of each case beyond their capacity, after a measurement of that capacity in the same session."""
        if not self.open:
            return []
        highest = (Load(self.highest),) if self.highest else ()
        loads = (Load(32), *(Load(CONNECTIONS, percent) for percent in self.open), *highest)
        return [
            Session(turn, case, name, "open", loads)
            for turn in range(self.open_rounds)
            for case in self.cases
            for name in self._under_open_loop(case, best)
        ]

    def memory_sessions(self) -> list[Session]:
        """What each server takes without a model, and this service's `bentoml serve` without anything."""
        starts = [
            Session(turn, "digits", name, "memory", empty=name == "empty") for turn in range(self.starts) for name in ("default", "empty")
        ]
        if not self.memory:
            return starts
        peers = [system.name for system in self.systems if system.requirements and system.kind != "limit" and can_be_empty(system)]
        return [*starts, *(Session(0, "near_empty", name, "memory", empty=True) for name in (*peers, "empty"))]

    def sessions(self, best: dict[Case, Sequence[str]]) -> list[Session]:
        """All of them."""
        return [*self.closed_sessions(), *self.memory_sessions(), *self.open_sessions(best)]

    def fitted(self, minutes: float) -> Plan:
        """The same with windows as long as `minutes` allow, two seconds at least."""
        guess: dict[Case, Sequence[str]] = dict.fromkeys(self.cases, ("litserve", "mosec"))
        fixed = sum(_fixed_s(session) for session in self.sessions(guess))
        weights = sum(_weights(session, self.grid) for session in self.sessions(guess))
        return replace(self, seconds=max(SHORTEST_S, (minutes * 60 - fixed) / weights))

    def estimate_s(self, sessions: Iterable[Session]) -> float:
        """Seconds that the sessions take."""
        return sum(_fixed_s(session) + self.seconds * _weights(session, self.grid) for session in sessions)

    def _under_open_loop(self, case: Case, best: dict[Case, Sequence[str]]) -> Sequence[str]:
        if self.all_open:
            return [system.name for system in self.systems if takes(system, case) and system.answers]
        ours = [system.name for system in self.systems if system.name == "default"]
        return [*ours, *best.get(case, ())]


def takes(system: System, case: Case) -> bool:
    """Whether the system is measured in the case."""
    if case == "tensor":
        return system.answers and "resnet50" in system.nets
    if case == "classify_batch":
        return system.batch is not None
    return case in system.nets


def can_be_empty(system: System) -> bool:
    """Whether the server starts without a model: PyTorch's do not."""
    return system.env.get("BACKEND", "onnx") == "onnx"


def precisions(case: Case) -> tuple[str, ...]:
    """Those that bare runs are measured in."""
    return ("fp32", "fp16", "int8") if case == "resnet50" else ("fp32",)


def _fixed_s(session: Session) -> float:
    loads = len(session.loads)
    fixed = SESSION_S[session.case] + loads * WARM_UP_S
    for load in session.loads:
        if load.percent is not None and load.percent > 100:
            fixed += OVERLOAD_S
        if load.callers >= 64 and load.percent is None:
            fixed += load.callers / PER_SECOND.get(session.case, 20.0)
    return fixed


def _weights(session: Session, grid: bool) -> float:
    if session.part == "bare":
        return BARE_SHARE * len(precisions(session.case)) * (24 if grid else 9) * WEIGHTS[session.case]
    return len(session.loads) * WEIGHTS[session.case]


BARE_SHARE = 0.4  # of a window, for each set-up of a bare run: there is no queue to fill, and only the best one counts


def complete(*, minutes: float, rounds: int, systems: Sequence[str] = ()) -> Plan:
    """`make bench`."""
    plan = Plan("bench", rounds, min(2, rounds), ("resnet50", "near_empty"), systems=_chosen(systems))
    return plan.fitted(minutes)


def whole_grid(*, seconds: float, rounds: int, systems: Sequence[str] = ()) -> Plan:
    """`make bench-full`."""
    return Plan(
        "full",
        rounds,
        rounds,
        ("resnet50", "near_empty", "tensor", "classify_batch"),
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
    return Plan("quick", rounds, 0, cases, systems, closed=(1, 8, 32), open=(), highest=None, memory=False, starts=4, seconds=seconds)


def smallest(*, seconds: float, system: str) -> Plan:
    """One system, one case, two loads: whether the bench itself works."""
    return Plan(
        "smallest", 1, 1, ("near_empty",), (BY_NAME[system],), closed=(1, 8), open=(50,), highest=None, memory=False, seconds=seconds
    )


def _chosen(names: Sequence[str]) -> tuple[System, ...]:
    if unknown := [name for name in names if name not in BY_NAME]:
        raise ValueError(f"no system {unknown[0]!r}: expected some of {', '.join(system.name for system in SYSTEMS)}")
    return tuple(system for system in SYSTEMS if not names or system.name in names)
