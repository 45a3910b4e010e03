"""How long a plan takes on a machine like this one, and the windows that fill a given time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from benchmarks.plan import BARE_BEST, BARE_SHARE, CAPACITY, SHORTEST_S, TURNS_SHARE, Case, Plan, Session, filling_s

# Seconds. What a session costs beside its windows, measured on two CPUs: starting, asking, ending.
SESSION_S = {"resnet50": 6.0, "near_empty": 5.0, "tensor": 6.0, "classify_batch": 6.0, "digits": 5.0}
WARM_UP_S = 1.0
TAIL_S = 12.0  # until the last of an overload is answered: the deadline, or the client's patience with a server that has none
PER_SECOND = {"near_empty": 400.0}  # requests, about: how long 256 callers take to be answered once
SLOW_PER_SECOND = 20.0  # the same of the other models
BARE_DECODING = 3  # set-ups that decode a picture too
BARE_OPEN_S = 0.5  # a session is opened and warmed up
BARE_START_S = 1.5  # the process that does
# For the estimate of a bench's length: heavy models have many peers near the best, light ones few.
GUESSED_CONTENDERS: dict[Case, Sequence[str]] = {
    "resnet50": ("ort", "ort2", "ort_tuned2", "litserve", "mlserver", "pytriton", "batchable2"),
    "near_empty": ("ort_tuned2", "mosec"),
}


def fitted(plan: Plan, minutes: float) -> Plan:
    """The plan with windows as long as `minutes` allow, two seconds at least."""
    guess: dict[Case, Sequence[str]] = dict.fromkeys(plan.cases, ("litserve", "mosec"))
    sessions = plan.sessions(guess, GUESSED_CONTENDERS)
    low, high = SHORTEST_S, max(SHORTEST_S, minutes * 60)
    for _ in range(40):  # halving: the estimate rises with the window, but not evenly, since windows have bounds
        middle = (low + high) / 2
        low, high = (middle, high) if seconds_of(replace(plan, seconds=middle), sessions) <= minutes * 60 else (low, middle)
    return replace(plan, seconds=low)


def seconds_of(plan: Plan, sessions: Iterable[Session]) -> float:
    """Seconds that these sessions of the plan take, about."""
    return sum(_session_s(plan, session) for session in sessions)


def _session_s(plan: Plan, session: Session) -> float:
    if session.part == "bare":
        return SESSION_S[session.case] + _bare_s(plan, session)
    per_second = PER_SECOND.get(session.case, SLOW_PER_SECOND)
    whole = SESSION_S[session.case]
    for load in session.loads:
        whole += plan.load_s(session, load, per_second)
        if plan.bare_beside(session, load):
            whole += plan.window_s(session.case) + 2 * (BARE_START_S + BARE_OPEN_S)
        if plan.in_turns(session, load):
            whole += plan.window_s(session.case, TURNS_SHARE) + BARE_START_S + BARE_OPEN_S
        if plan.bracketed(session, load):
            whole += 2 * (WARM_UP_S + plan.load_s(session, CAPACITY, per_second))
        if load.percent is not None and load.percent > 100:
            whole += filling_s(per_second, load.percent) + TAIL_S
        else:
            whole += WARM_UP_S + (load.callers / per_second if load.percent is None and load.callers >= 64 else 0)
    return whole


def _bare_s(plan: Plan, session: Session) -> float:
    """The first round compares every set-up in every precision; each one then measures the best, and a picture alone."""
    window, compared = plan.window_s(session.case), plan.window_s(session.case, BARE_SHARE)
    wanted = plan.bare_precisions(session)
    every = (24 if plan.grid else 7) * len(wanted) if session.round == 0 else 0
    whole = BARE_BEST * len(wanted) + (BARE_DECODING if "fp32" in wanted else 0)
    return every * (compared + BARE_OPEN_S) + whole * (window + BARE_OPEN_S)
