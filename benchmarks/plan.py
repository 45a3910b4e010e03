"""What is measured, in which order and in how long a window: rounds of sessions, each of one system in one case under several loads.

Where the time of `make bench` goes. A ratio of 0.95 is told from one of 0.98 by windows that hold some two hundred answers of resnet50, in
every round; a row that only fills the table is not. So what a target compares (`counted`) is measured with whole windows, the other loads
with short ones; in the first round that is everybody, in the others this service and the peers that the first one found near the best
(`contenders`). `make bench-quick` and `make bench-full` treat all alike: `benches.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from benchmarks.systems import BY_NAME, SYSTEMS, System
from ortserve import profile_file

Case = Literal["resnet50", "near_empty", "tensor", "classify_batch", "digits"]
ALL: tuple[Case, ...] = ("resnet50", "near_empty", "tensor", "classify_batch")  # `digits` is for starts
CLOSED = (1, 8, 32, 64)
BELOW = (50, 80, 95)  # per cent of what the same session answered at 32 callers, of which a target allows no error
PAST = 400  # the same, of which a target asks who is answered, and how soon the others are refused
OPEN = (*BELOW, 120, PAST)
CONNECTIONS = 512  # the most an open loop opens: as many as a busy proxy in front keeps
# Of resnet50 a window holds a twentieth of the near-empty model's answers: it gets more of the time.
WEIGHTS = {"resnet50": 1.0, "near_empty": 0.4, "tensor": 1.0, "classify_batch": 1.0, "digits": 0.5}
SHORTEST_S = 2.0
SHORT_SHARE = 0.3  # of a window, for what only fills the table
# Past capacity the steady state is a queue that is full, and the first seconds are of one that fills: they do not count. They last as
# long as the surplus needs to bring as many requests as a queue holds, and a second more for the refusals to be the rule. Little past
# capacity that takes most of a minute; no target looks there, so it is cut short.
LONGEST_FILLING_S = 10.0
BELOW_ANSWERS = 100  # that a window of an open loop below capacity should hold: of fewer, the p99 is the worst
BELOW_S = 10.0  # it is no longer than that
OVERLOAD_ANSWERS = 250  # that a window past capacity should hold, within its bounds
OVERLOAD_S = (4.0, 10.0)  # the shortest and the longest window past capacity
BARE_SHARE = 0.15  # of a window, for each set-up of a bare run when they are first compared; the best two then get a whole one each
BARE_BEST = 2
# Rates that a target divides by a bare run are measured beside one: half a window of it before, half a window after, in the same minute.
# Machines drift by more than such a target may lose, and within minutes.
OVER_BARE: frozenset[tuple[Case, str, int]] = frozenset({("resnet50", "default", 8), ("resnet50", "default", 32)})
# And within seconds: what one caller waits for is measured once more, in turns with decoding and a bare run, for so many windows: some
# eighty answers of resnet50, and as many bare runs.
IN_TURNS: frozenset[tuple[Case, str]] = frozenset({("resnet50", "default"), ("resnet50", "latency")})
TURNS_SHARE = 4.0
# Precisions of bare runs that a target compares with, other than beside a load: in every round.
COMPARED: dict[Case, tuple[str, ...]] = {"resnet50": ("int8",), "near_empty": ("fp32",)}
# Callers at which a target compares this service's profiles and PyTorch; peers are compared where the default profile is.
COUNTED: dict[tuple[Case, str], tuple[int, ...]] = {
    ("resnet50", "default"): (1, 8, 32, 64),
    ("resnet50", "latency"): (1,),
    ("resnet50", "int8"): (8, 32),
    ("resnet50", "pytorch"): (8, 32),
    ("near_empty", "default"): (8, 32, 64),
    ("near_empty", "light"): (8, 32, 64),
    ("near_empty", "pytorch"): (),
    **{(case, "throughput"): () for case in ALL},  # no target looks at it
}
# Cases that no target compares, at these callers, in windows of so many seconds: shown by `make bench` for the best set-ups, in one round.
# Of several set-ups of one server one takes tensors: it differs from the others in how it decodes.
TENSOR = ("default", "latency", "int8", "pytorch", "ort_tuned", "ort_tuned2", "litserve", "mosec", "pytriton")
SHOWN: dict[Case, tuple[tuple[int, ...], float]] = {"tensor": ((1, 8, 32), 3.0), "classify_batch": ((1, 8), 8.0)}
BRACKETED = (BELOW[-1], PAST)  # where a drift of the machine since capacity was measured is as large as what a target allows
COUNTED_PEERS: dict[Case, tuple[int, ...]] = {"resnet50": (8, 32), "near_empty": (8, 32, 64)}


@dataclass(frozen=True)
class Load:
    """A closed loop of `callers`, or an open one at `percent` of capacity."""

    callers: int
    percent: int | None = None

    @property
    def key(self) -> str:
        """As results call it."""
        return f"closed {self.callers}" if self.percent is None else f"open {self.percent}"


CAPACITY = Load(32)  # what a system answers there is its capacity, of which an open loop takes its share


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
    even: bool = True  # whole windows for all, in every round; otherwise only for what targets compare
    grid: bool = False  # every set-up of bare runs
    judged: bool = True  # by the targets
    memory: bool = True
    starts: int = 0  # of this service with `digits` and of an empty one, for their time and memory; the first of each does not count
    patience_s: float = 60.0  # that an idle machine is waited for before a round
    seconds: float = field(default=4.0)  # of a window, times its case's weight

    def window_s(self, case: Case, share: float = 1.0) -> float:
        """Seconds of a window."""
        return max(min(SHORTEST_S, self.seconds), self.seconds * WEIGHTS[case] * share)

    def load_s(self, session: Session, load: Load, capacity: float) -> float:
        """Seconds of the window of one load; `capacity` is in requests per second."""
        if load.percent is not None and load.percent > 100:
            shortest, longest = OVERLOAD_S
            return min(max(OVERLOAD_ANSWERS / capacity, shortest), longest)
        if self.even:
            return self.window_s(session.case)
        if self._only_shown(session.case):
            return SHOWN[session.case][1]
        if load.percent is not None:
            wanted_s = min(BELOW_ANSWERS / (capacity * load.percent / 100), BELOW_S)
            return max(self.window_s(session.case, SHORT_SHARE), wanted_s)
        whole = load == CAPACITY if session.part == "open" else load.callers in counted(BY_NAME[session.system], session.case)
        return self.window_s(session.case, 1.0 if whole else SHORT_SHARE)

    def bare_precisions(self, session: Session) -> tuple[str, ...]:
        """Those that bare runs of a session are measured in."""
        if session.round == 0:
            return precisions(session.case)
        return COMPARED[session.case] if self.judged else tuple({"fp32": None, **dict.fromkeys(COMPARED[session.case])})

    def bare_beside(self, session: Session, load: Load) -> bool:
        """Whether there are bare runs beside that load."""
        return self.judged and session.part == "closed" and (session.case, session.system, load.callers) in OVER_BARE

    def in_turns(self, session: Session, load: Load) -> bool:
        """Whether that load is followed by requests and bare runs in turns."""
        return self.judged and session.part == "closed" and load.callers == 1 and (session.case, session.system) in IN_TURNS

    def bracketed(self, session: Session, load: Load) -> bool:
        """Whether capacity is measured just before that load and just after it."""
        return self.judged and load.percent in BRACKETED and BY_NAME[session.system].kind == "ours"

    def closed_sessions(self, turns: Iterable[int], contenders: Mapping[Case, Sequence[str]]) -> list[Session]:
        """Systems under closed loops, round by round, after what needs no server; all of them in the first round."""
        sessions: list[Session] = []
        for turn in turns:
            for case in self.cases:
                loads = tuple(Load(callers) for callers in (SHOWN[case][0] if self._only_shown(case) else self.closed))
                if case in ("resnet50", "near_empty"):
                    sessions.append(Session(turn, case, "bare", "bare"))
                for system in self.systems:
                    if takes(system, case) and self._has_turn(turn, system, case, contenders.get(case, ())):
                        sessions.append(Session(turn, case, system.name, "closed", loads))
        return sessions

    def open_sessions(self, best: Mapping[Case, Sequence[str]]) -> list[Session]:
        """Ours and the `best` peers of each case beyond their capacity, after a measurement of that capacity in the same session."""
        if not self.open:
            return []
        highest = (Load(self.highest),) if self.highest else ()
        loads = (CAPACITY, *(Load(CONNECTIONS, percent) for percent in self.open), *highest)
        compared = tuple(load for load in loads if self.even or load == CAPACITY or load.percent in (*BELOW, PAST))
        return [
            Session(turn, case, name, "open", compared if turn else loads)
            for turn in range(self.open_rounds)
            for case in self.cases
            if not self._only_shown(case)
            for name in self._under_open_loop(case, best)
            if self.even or turn == 0 or BY_NAME[name].kind == "ours"  # no target compares with what a peer does past its capacity
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

    def sessions(self, best: Mapping[Case, Sequence[str]], contenders: Mapping[Case, Sequence[str]]) -> list[Session]:
        """All of them."""
        return [*self.closed_sessions(range(self.rounds), contenders), *self.memory_sessions(), *self.open_sessions(best)]

    def _has_turn(self, turn: int, system: System, case: Case, contenders: Sequence[str]) -> bool:
        """Whether a round of closed loops measures the system: the first one whatever is shown, the others what a target compares."""
        if self.even:
            return True
        if turn == 0:
            return shown(system, case)
        return bool(counted(system, case)) and (system.name in contenders or (case, system.name) in COUNTED)

    def _only_shown(self, case: Case) -> bool:
        return not self.even and case in SHOWN

    def _under_open_loop(self, case: Case, best: Mapping[Case, Sequence[str]]) -> Sequence[str]:
        if self.all_open:
            return [system.name for system in self.systems if takes(system, case) and system.answers]
        ours = [system.name for system in self.systems if system.name == "default" or (system.name == "light" and case in system.nets)]
        return [*ours, *best.get(case, ())]


def takes(system: System, case: Case) -> bool:
    """Whether the system is measured in the case."""
    if case == "tensor":
        return system.answers and "resnet50" in system.nets
    if case == "classify_batch":
        return system.batch is not None and "resnet50" in system.nets
    return case in system.nets


def shown(system: System, case: Case) -> bool:
    """Whether `make bench` has room for the system in the case: of several set-ups of the same, only the best takes tensors."""
    return case != "tensor" or system.name in TENSOR


def counted(system: System, case: Case) -> tuple[int, ...]:
    """Callers at which a target compares what the system does in the case."""
    if (case, system.name) in COUNTED:
        return COUNTED[case, system.name]
    return COUNTED_PEERS.get(case, ()) if system.kind in ("peer", "reference") else ()


def filling_s(capacity: float, percent: int) -> float:
    """Seconds until a queue is full at `percent` of a capacity in requests per second."""
    surplus = capacity * (percent - 100) / 100
    return min(1 + _queue_rows() / surplus, LONGEST_FILLING_S)


@cache
def _queue_rows() -> int:
    """Rows that the default profile's queue holds on a CPU."""
    return profile_file.load("default").execution[-1].batching.max_queue_size


def can_be_empty(system: System) -> bool:
    """Whether the server starts without a model: PyTorch's do not."""
    return system.env.get("BACKEND", "onnx") == "onnx"


def precisions(case: Case) -> tuple[str, ...]:
    """Those that bare runs are measured in."""
    return ("fp32", "fp16", "int8") if case == "resnet50" else ("fp32",)
