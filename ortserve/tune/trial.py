"""Trials on the real service: a candidate is started, compared with the shipped profile's answers, loaded, stopped and written down."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ortserve.tune.candidate import Candidate
from ortserve.tune.journal import Journal
from ortserve.tune.load import Plan
from ortserve.tune.objective import LOAD_SHARE, Figures, Goal
from ortserve.tune.results import FEWEST_ROUNDS
from ortserve.tune.search import RUNGS, Outcome
from ortserve.tune.service import ROOT, CannotServe, Service
from ortserve.tune.space import ALWAYS, BASELINES
from ortserve.tune.traffic import Kind

WARM_UP_S = 0.75
PROBES = 30  # answers that are compared with the shipped profile's
FINAL_SHARE = 0.3  # of the budget, at least: the comparison in turns, which the result stands on
ROUNDS = 5  # of the final comparison, where the time allows it
SHORTEST_S = 0.75  # of a loop
HUNG_AFTER_S = 60.0  # beyond its plan a load's process is hung
PRIOR_S = {  # what the parts of a trial beside its two loops are taken for until one was timed
    "service_s": 5.0,  # start, comparison of answers, stop
    "around_s": 2.0,  # warm-up, and the answers under way at either loop's end
}
AFTER_S = 3.0  # of the budget: Python's start, the CSV and the picture; 1.3 s on two CPUs
EXCUSED = {"200", "429", "503", "504"}  # a service under too much load refuses; any other status is a wrong answer


@dataclass(frozen=True, slots=True)
class Setup:
    """What every trial of a search has in common."""

    model: str  # NAME or NAME:VERSION, as the store has it
    kind: Kind
    requests: Sequence[Path]
    goal: Goal
    callers: int
    budget_s: float
    min_agreement: float
    folder: Path  # profiles and logs


class Trials:
    """Measures candidates, in the budget. An interrupted search finds what it measured in the journal and does not measure it again."""

    def __init__(self, setup: Setup, journal: Journal, said: Callable[[str], None]) -> None:
        self._setup = setup
        self._journal = journal
        self._say = said
        self._done = journal.find("done") is not None
        self._ends = time.monotonic() + setup.budget_s - AFTER_S - journal.spent_s
        # A budget of ten minutes starts with two loops of four seconds; more brings no more than more candidates would.
        self._first_s = min(5.0, max(SHORTEST_S, setup.budget_s / 150))
        self._shortest_s = max(SHORTEST_S, self._first_s / 2)  # of the final comparison

    # --- as `search.Bench` ------------------------------------------------------------------------------------------------

    def measure(self, candidate: Candidate, rung: int) -> Outcome | None:
        """The trial's outcome; None where it would not fit into the time of the search. The first shipped profiles always have one."""
        known = self._journal.find("trial", id=candidate.id, rung=rung)
        if known is None:
            seconds = self._first_s * 2**rung
            always = rung == 0 and candidate.shipped in BASELINES[self._setup.goal.objective][:ALWAYS]
            if not always and self._cost_s(seconds) > self._search_left_s:
                return None
            known = self._trial(candidate, rung, seconds)
            self._journal.add(known)
        figures = Figures(**known["figures"]) if known["figures"] else None
        self._say(f"{candidate.label}: {figures.text() if figures else known['reason']}")
        return Outcome(candidate, rung, figures, known["reason"])

    def known(self, candidate: Candidate) -> bool:
        """Whether the journal has a trial of it."""
        return self._journal.find("trial", id=candidate.id) is not None

    def room(self) -> int:
        """How many candidates the search's time takes through all rungs: all at the first, half at the second, and so on."""
        cost = sum(self._cost_s(self._first_s * 2**rung) / 2**rung for rung in range(RUNGS))
        return max(1, int(self._search_left_s / cost))

    @property
    def _search_left_s(self) -> float:
        contenders = 1 + len({entry["id"] for entry in self._journal.entries if entry["kind"] == "trial" and entry["shipped"]})
        decides_s = FEWEST_ROUNDS * (max(self._timed("around_s")) + 2 * self._shortest_s) + max(self._timed("service_s"))
        return self._ends - time.monotonic() - max(FINAL_SHARE * self._setup.budget_s, contenders * decides_s)

    def _cost_s(self, seconds: float) -> float:
        """What a trial of two loops of that length takes, going by those so far."""
        return sum(fmean(self._timed(part)) for part in PRIOR_S) + 2 * seconds

    def _timed(self, part: str, ids: Container[str] | None = None) -> list[float]:
        """That part of the trials that answered, or of those candidates' alone; the prior where there is none."""
        made = [entry for entry in self._journal.entries if entry["kind"] == "trial" and part in entry]
        return [entry[part] for entry in made if ids is None or entry["id"] in ids] or [PRIOR_S[part]]

    def _trial(self, candidate: Candidate, rung: int, seconds: float) -> dict[str, Any]:
        begun = time.monotonic()
        entry: dict[str, Any] = {"kind": "trial", "id": candidate.id, "label": candidate.label, "shipped": candidate.shipped, "rung": rung}
        entry |= {"data": candidate.data, "seconds": seconds, "figures": None, "reason": "", "agreement": None}
        try:
            with self._start(candidate) as service:
                entry["agreement"] = self._agreement(service, candidate)
                loading = time.monotonic()
                entry["figures"] = asdict(self._load(service, seconds, self._rate(), len(self._journal.entries)))
                loaded_s = time.monotonic() - loading
        except CannotServe as error:
            entry["reason"] = str(error)
        took = time.monotonic() - begun
        if entry["figures"]:
            entry |= {"service_s": round(took - loaded_s, 3), "around_s": round(max(0.0, loaded_s - 2 * seconds), 3)}
        return {**entry, "took_s": round(took, 3)}

    def _start(self, candidate: Candidate) -> Service:
        profile = self._setup.folder / "profiles" / f"{candidate.id}.yaml"
        profile.parent.mkdir(parents=True, exist_ok=True)
        profile.write_text(candidate.yaml(), encoding="utf-8")
        logs = self._setup.folder / "logs"
        logs.mkdir(exist_ok=True)
        return Service(self._setup.model, profile, logs / f"{candidate.id}.log")

    def _rate(self) -> float | None:
        """Of the open loop. Callers who want short answers are as many whoever serves them; capacity is measured near each one's own."""
        if self._setup.goal.objective == "throughput":
            return None
        first = next((one for one in self._journal.entries if one["kind"] == "trial" and one["shipped"] and one["figures"]), None)
        return None if first is None else LOAD_SHARE["latency"] * first["figures"]["requests_per_s"]

    def _agreement(self, service: Service, candidate: Candidate) -> float:
        """The share of answers that are those of the first shipped profile. Raises CannotServe below the limit."""
        kind, gists = self._setup.kind, []
        for file in self._setup.requests[:PROBES]:
            status, answer = service.send(file.read_bytes())
            if status != 200:
                raise CannotServe(f"answered {status} to {file.name}: {json.dumps(answer)[:200]}")
            gists.append(kind.gist(answer))
        reference = self._journal.find("answers")
        if reference is None:
            self._journal.add({"kind": "answers", "of": candidate.id, "gists": gists})
            return 1.0
        same = [kind.same(one, other) for one, other in zip(gists, reference["gists"], strict=True)]
        share = sum(same) / len(same)
        if share < self._setup.min_agreement:
            raise CannotServe(f"only {share:.1%} of its answers are the shipped profile's, expected {self._setup.min_agreement:.1%}")
        return share

    def _load(self, service: Service, seconds: float, rate: float | None, seed: int) -> Figures:
        """The figures of a closed and an open loop of that many seconds. Raises CannotServe where an answer was wrong, not a refusal."""
        files = tuple(str(file) for file in self._setup.requests)
        share = LOAD_SHARE[self._setup.goal.objective]
        plan = Plan(service.port, files, self._setup.callers, WARM_UP_S, seconds, seconds, rate, share, seed)
        process = subprocess.Popen(
            [sys.executable, "-m", "ortserve.tune.load"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(json.dumps(asdict(plan)), timeout=2 * seconds + HUNG_AFTER_S)
        except subprocess.TimeoutExpired:
            raise CannotServe("its load did not end") from None
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise CannotServe(f"its load ended with {process.returncode}")
        loops = json.loads(output)
        closed, opened = loops["closed"], loops["open"]
        if opened is None:
            raise CannotServe(f"no request was answered in {seconds:g} s, statuses {closed['statuses']}")
        if wrong := {*closed["statuses"], *opened["statuses"]} - EXCUSED - {"none"}:
            raise CannotServe(f"answered {', '.join(sorted(wrong))} under load")
        return Figures(
            requests_per_s=closed["requests_per_s"],
            closed_p50_ms=closed["p50_ms"],
            rate=opened["offered_per_s"],
            p50_ms=opened["p50_ms"],
            p99_ms=opened["p99_ms"],
            failed=opened["failed"],
            answered=closed["answered"] + opened["answered"],
        )

    # --- the end ----------------------------------------------------------------------------------------------------------

    def in_turns(self, candidates: Sequence[Candidate]) -> dict[str, list[Figures]]:
        """Each one's figures round by round, all of them started at once and loaded one after the other, so that a drift of the machine
        hits all alike. At least one round."""
        ids = [candidate.id for candidate in candidates]
        rounds = [entry for entry in self._journal.entries if entry["kind"] == "round" and list(entry["figures"]) == ids]
        services_s = max(self._timed("service_s", ids)) * len(ids)
        left_s = self._ends - time.monotonic() - services_s
        count, seconds = turns(left_s / len(ids), max(self._timed("around_s", ids)), self._shortest_s, ROUNDS - len(rounds))
        wanted = max(1, len(rounds) + count)
        if not self._done and len(rounds) < wanted:
            with ExitStack() as running:
                begun = time.monotonic()
                services = {one.id: running.enter_context(self._start(one)) for one in candidates}
                stopping = self._ends - max(0.0, services_s - (time.monotonic() - begun))
                took = 0.0
                while len(rounds) < wanted and (not rounds or time.monotonic() + took <= stopping):
                    turn = time.monotonic()
                    rate = self._rate()
                    figures = {key: asdict(self._load(service, seconds, rate, len(rounds))) for key, service in services.items()}
                    took = time.monotonic() - turn
                    rounds.append({"kind": "round", "seconds": seconds, "figures": figures, "took_s": round(took, 3)})
                    self._journal.add(rounds[-1])
                    self._say(f"round {len(rounds)} of {wanted}")
        return {key: [Figures(**entry["figures"][key]) for entry in rounds] for key in ids}


def turns(left_s: float, around_s: float, shortest_s: float, most: int) -> tuple[int, float]:
    """How many rounds one contender's time holds, and the seconds of each loop: rather short ones than few, since the best must be ahead in
    every one. A round is two loops and what is around them."""
    count = max(0, min(most, int(left_s / (2 * shortest_s + around_s))))
    seconds = (left_s / count - around_s) / 2 if count else shortest_s
    return count, min(8 * shortest_s, seconds)
