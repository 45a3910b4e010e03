"""The points of a bench, looked up by what they are of; figures by round, so that a ratio is always of one round: the machine drifts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from statistics import mean
from typing import Any

from benchmarks.machine import summary
from benchmarks.state import Point

ByRound = dict[int, float]
SETUP = ("threads", "callers", "batch", "spinning", "decoding")  # what tells one bare run from another


class Figures:
    """Every figure by round."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._points: dict[tuple[str, str, str, str], dict[int, Point]] = {}
        for point in points:
            turn, case, system, part = point["session"].split("/", 3)
            self._points.setdefault((case, system, part, point["load"]), {})[int(turn)] = point

    def points(self, case: str, system: str, load: str, part: str = "closed") -> dict[int, Point]:
        """The points by round, those that say why there are no figures among them."""
        return self._points.get((case, system, part, load), {})

    def loads(self, case: str, system: str, part: str) -> list[str]:
        """The loads a system was put under."""
        return [load for of_case, of_system, of_part, load in self._points if (of_case, of_system, of_part) == (case, system, part)]

    def of(self, case: str, system: str, load: str, figure: str, part: str = "closed") -> ByRound:
        """One figure by round; empty where it was not measured."""
        points = self.points(case, system, load, part)
        return {turn: float(point[figure]) for turn, point in points.items() if point.get(figure) is not None}

    def bare(self, case: str, precision: str = "fp32") -> ByRound:
        """Rows per second of the best set-up of each round."""
        return self._setups(case, precision, lambda one: -one["rows_per_s"], "rows_per_s", decoding=False)

    def bare_beside(self, case: str, system: str, load: str) -> ByRound:
        """Rows per second of the bare runs just before and just after a load, their mean, by round; none of a round in which one failed."""
        runs = {turn: point.get("beside", []) for turn, point in self.points(case, system, load).items()}
        whole = {turn: both for turn, both in runs.items() if both and all("rows_per_s" in one for one in both)}
        return {turn: mean(one["rows_per_s"] for one in both) for turn, both in whole.items()}

    def capacity_beside(self, case: str, system: str, load: str) -> ByRound:
        """Requests per second just before and just after a load of the open loop, their mean, by round."""
        points = self.points(case, system, load, "open")
        return {turn: mean(point["capacity_beside_per_s"]) for turn, point in points.items() if "capacity_beside_per_s" in point}

    def decoding_cpu_s(self) -> ByRound:
        """CPU seconds of decoding one picture and running the near-empty model: what every server spends on its pictures at least."""
        return self._setups("near_empty", "fp32", lambda one: one.get("cpu_s_per_row", inf), "cpu_s_per_row", decoding=True)

    def setups(self, case: str, precision: str) -> list[dict[str, Any]]:
        """Every set-up of bare runs, by its median; those that were only compared in short windows by that."""
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for figure in ("setups", "compared"):
            known = set(found)
            for point in self.points(case, "bare", precision, "bare").values():
                for one in point.get(figure, []):
                    setup = tuple(one[key] for key in SETUP)
                    if setup not in known:
                        found.setdefault(setup, []).append(one)
        return [of_one[0] | {key: summary([one[key] for one in of_one]) for key in ("rows_per_s", "p50_ms")} for of_one in found.values()]

    def peak_mib(self, case: str, system: str, loads: Sequence[str]) -> ByRound:
        """The largest memory of a session under the loads."""
        peaks: ByRound = {}
        for load in loads:
            for turn, value in self.of(case, system, load, "pss_mib").items():
                peaks[turn] = max(peaks.get(turn, 0.0), value)
        return peaks

    def reason(self, case: str, system: str) -> str | None:
        """Why a system has no figures, or what was wrong with its answers; None where nothing was."""
        for point in self.points(case, system, "start").values():
            if said := point.get("reason") or point.get("wrong"):
                return str(said)
        return None

    def _setups(self, case: str, precision: str, order: Callable[[Any], float], figure: str, *, decoding: bool) -> ByRound:
        best: ByRound = {}
        for turn, point in self.points(case, "bare", precision, "bare").items():
            setups = [one for one in point.get("setups", []) if one["decoding"] == decoding and figure in one]
            if setups:
                best[turn] = min(setups, key=order)[figure]
        return best


def ratios(ours: ByRound, theirs: ByRound) -> list[float]:
    """One over the other in each round that has both."""
    return [ours[turn] / theirs[turn] for turn in sorted(ours.keys() & theirs.keys()) if theirs[turn] > 0]


def best_of(systems: Mapping[str, ByRound], choose: Callable[[Iterable[float]], float] = max) -> ByRound:
    """The best figure of each round, whoever had it."""
    turns = {turn for of_one in systems.values() for turn in of_one}
    return {turn: choose(of_one[turn] for of_one in systems.values() if turn in of_one) for turn in turns}


def ranked(systems: Mapping[str, ByRound]) -> list[str]:
    """Names of those that were measured, the highest median first."""
    measured = {name: summary(list(of_one.values()))["median"] for name, of_one in systems.items() if of_one}
    return sorted(measured, key=lambda name: -measured[name])
