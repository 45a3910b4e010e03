"""What this service is held to, as ratios within one run: the measured ratio of each target, its spread, and whether it is met."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.figures import ByRound, Figures, best_of, ratios
from benchmarks.machine import summary
from benchmarks.places import RESULTS
from benchmarks.plan import CLOSED
from benchmarks.systems import BY_NAME, SYSTEMS
from ortserve import profile

PEERS = [system.name for system in SYSTEMS if system.kind in ("peer", "reference")]
REFUSAL_MS = 20.0


@dataclass(frozen=True)
class Target:
    """`values` are of one round each; their median is compared with the limit."""

    what: str
    limit: float
    at_least: bool
    values: tuple[float, ...]
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if not self.values:
            return None
        median = summary(self.values)["median"]
        return median >= self.limit if self.at_least else median <= self.limit

    def row(self) -> str:
        """As a line of the table."""
        wanted = f"{'>=' if self.at_least else '<='} {self.limit:g}{self.unit}"
        if not self.values:
            return f"| {self.what} | {wanted} | not measured | | |"
        found = summary(self.values)
        spread = f"{_short(found['min'])} to {_short(found['max'])}"
        return f"| {self.what} | {wanted} | {_short(found['median'])}{self.unit} | {spread} | {'met' if self.met else '**missed**'} |"


def targets(figures: Figures) -> list[Target]:
    """All of them, in the table's order."""
    return list(_targets(figures))


def table(found: Sequence[Target]) -> str:
    """As Markdown."""
    lines = ["| case | target | measured, median of rounds | spread | |", "|---|---|---|---|---|", *(target.row() for target in found)]
    met = sum(target.met is True for target in found)
    return "\n".join([*lines, "", f"{met} of {len(found)} met."]) + "\n"


def _targets(figures: Figures) -> Iterator[Target]:
    for callers in (8, 32):
        rate = _rate(figures, "resnet50", "default", callers)
        yield _least(f"`resnet50` fp32, {callers} callers, over the best bare `session.run`", 0.95, ratios(rate, figures.bare("resnet50")))
        yield _least(
            f"`resnet50` fp32, {callers} callers, over the best peer", 1.05, ratios(rate, _best_rate(figures, "resnet50", callers))
        )
        yield _least(
            f"`resnet50` fp32, {callers} callers, over PyTorch behind FastAPI",
            2.2,
            ratios(rate, _rate(figures, "resnet50", "pytorch", callers)),
        )
    for callers in (8, 32):
        yield _least(
            f"`resnet50` int8, {callers} callers, over PyTorch behind FastAPI (speed on random weights)",
            3.2,
            ratios(_rate(figures, "resnet50", "int8", callers), _rate(figures, "resnet50", "pytorch", callers)),
        )
    yield _int8_agreement()
    for callers in (8, 32, 64):
        rate = _rate(figures, "near_empty", "default", callers)
        yield _least(
            f"near-empty model, {callers} callers, over the best peer", 2.0, ratios(rate, _best_rate(figures, "near_empty", callers))
        )
    for callers in (8, 32, 64):
        least = best_of({name: _cpu(figures, "near_empty", name, callers) for name in PEERS}, min)
        yield _most(
            f"near-empty model, {callers} callers: server CPU seconds per request, over the thriftiest peer",
            0.5,
            ratios(_cpu(figures, "near_empty", "default", callers), least),
        )
    alone = figures.bare_alone_ms("resnet50")
    for name, limit in (("default", 1.08), ("latency", 1.05)):
        p50 = figures.of("resnet50", name, "closed 1", "p50_ms")
        yield _most(f"{name} profile, 1 caller: p50 over bare plus decoding", limit, ratios(p50, alone))
    for case in ("resnet50", "near_empty"):
        p99, p50 = (figures.of(case, "default", "closed 64", key) for key in ("p99_ms", "p50_ms"))
        yield _most(f"p99 over p50, 64 callers, {_shown(case)}", 1.6, ratios(p99, p50))
    for case in ("resnet50", "near_empty"):
        yield from _overload(figures, case)
    yield _errors(figures)
    yield _memory(figures)


def _int8_agreement() -> Target:
    """Of the trained classifiers of the parity table, which `make parity` measures."""
    path = RESULTS / "parity.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    trained = [row for row in rows if row["task"] == "image-classification" and "(trained)" in row["model"] and row["precision"] == "int8"]
    values = [row["agreement"]["value"] for row in trained]
    return _least("int8: top-1 agreement with PyTorch, trained classifiers of the parity table", 0.98, values)


def _overload(figures: Figures, case: str) -> Iterator[Target]:
    def of(figure: str, load: str = "open 400") -> ByRound:
        return figures.of(case, "default", load, figure, "open")

    deadline_ms = profile.load("default").limits.request_timeout_ms
    shown = f"400 % of capacity, {_shown(case)}"
    yield _least(f"{shown}: goodput over capacity", 0.95, ratios(of("requests_per_s"), of("requests_per_s", "closed 32")))
    yield _most(f"{shown}: p99 of what was accepted over the deadline", 1.0, [value / deadline_ms for value in of("p99_ms").values()])
    yield Target(f"{shown}: median time of a refusal", REFUSAL_MS, False, tuple(of("failed_p50_ms").values()), " ms")


def _errors(figures: Figures) -> Target:
    below = [f"open {percent}" for percent in (50, 80, 95)]
    counts = [
        value
        for case in ("resnet50", "near_empty")
        for load, part in [*((f"closed {callers}", "closed") for callers in CLOSED), *((load, "open") for load in below)]
        for value in figures.of(case, "default", load, "failed", part).values()
    ]
    return Target("errors below capacity, from the first request after the start", 0, False, (sum(counts),) if counts else ())


def _memory(figures: Figures) -> Target:
    loads = [f"closed {callers}" for callers in CLOSED]
    empty = figures.of("near_empty", "empty", "start", "pss_mib", "memory/empty").get(0)
    leanest = best_of({name: _without(figures.peak_mib("resnet50", name, loads), _empty(figures, name)) for name in PEERS}, min)
    ours = _without(figures.peak_mib("resnet50", "default", loads), empty)
    return _most(
        "`resnet50`: peak memory less an empty `bentoml serve`, over the leanest peer less its empty server", 1.0, ratios(ours, leanest)
    )


def _empty(figures: Figures, name: str) -> float | None:
    """A peer's server without a model; BentoML's own for the peers that are BentoML."""
    of = name if BY_NAME[name].requirements else "empty"
    return figures.of("near_empty", of, "start", "pss_mib", "memory/empty").get(0)


def _without(peaks: ByRound, empty: float | None) -> ByRound:
    return {} if empty is None else {turn: value - empty for turn, value in peaks.items()}


def _rate(figures: Figures, case: str, system: str, callers: int) -> ByRound:
    return figures.of(case, system, f"closed {callers}", "requests_per_s")


def _cpu(figures: Figures, case: str, system: str, callers: int) -> ByRound:
    """CPU seconds per request, where it answered requests at all."""
    rates = _rate(figures, case, system, callers)
    cpu = figures.of(case, system, f"closed {callers}", "server_cpu_s_per_request")
    return {turn: value for turn, value in cpu.items() if rates.get(turn, 0) > 0}


def _best_rate(figures: Figures, case: str, callers: int) -> ByRound:
    return best_of({name: _rate(figures, case, name, callers) for name in PEERS})


def _least(what: str, limit: float, values: Sequence[float]) -> Target:
    return Target(what, limit, True, tuple(values))


def _most(what: str, limit: float, values: Sequence[float]) -> Target:
    return Target(what, limit, False, tuple(values))


def _shown(case: str) -> str:
    return {"resnet50": "`resnet50`", "near_empty": "near-empty model"}[case]


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
