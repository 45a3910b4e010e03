"""What this service is held to, as ratios within one run: the measured ratio of each target, its spread, and whether it is met."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf

from benchmarks.contenders import PEERS, in_every_round
from benchmarks.figures import ByRound, Figures, best_of, ratios
from benchmarks.machine import summary
from benchmarks.places import RESULTS
from benchmarks.plan import BELOW, CAPACITY, CLOSED, PAST
from benchmarks.systems import BY_NAME
from ortserve import profile_file

REFUSAL_MS = 20.0
LIGHT = ("light", "default")  # for a model that costs less than its picture: the profile made for such, and the one that nobody chose
OURS = (("resnet50", "default"), *(("near_empty", name) for name in LIGHT))


@dataclass(frozen=True)
class Target:
    """`values` are of one round each; their median is compared with the limit. `best` is the same ratio for what this machine allows."""

    what: str
    limit: float
    at_least: bool
    values: tuple[float, ...]
    unit: str = ""
    best: tuple[float, ...] = ()  # of one round each; (): nothing is known of it

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if not self.values:
            return None
        median = summary(self.values)["median"]
        return median >= self.limit if self.at_least else median <= self.limit

    @property
    def within_reach(self) -> bool:
        """Whether what this machine allows would meet it; True where that is not known."""
        if not self.best:
            return True
        median = summary(self.best)["median"]
        return median >= self.limit if self.at_least else median <= self.limit

    def row(self) -> str:
        """As a line of the table."""
        wanted = f"{'>=' if self.at_least else '<='} {self.limit:g}{self.unit}"
        best = _short(summary(self.best)["median"]) + self.unit if self.best else ""
        if not self.values:
            return f"| {self.what} | {wanted} | not measured | | {best} | |"
        found = summary(self.values)
        spread = f"{_short(found['min'])} to {_short(found['max'])}"
        said = "met" if self.met else "**missed**" if self.within_reach else "**missed**, out of reach here"
        return f"| {self.what} | {wanted} | {_short(found['median'])}{self.unit} | {spread} | {best} | {said} |"


def targets(figures: Figures, cpus: int) -> list[Target]:
    """All of them, in the table's order; `cpus` are those of the machine the figures come from."""
    return [*_heavy(figures, cpus), _int8_agreement(), *_light(figures, cpus), *_latencies(figures), *_past_capacity(figures, cpus)]


def table(found: Sequence[Target]) -> str:
    """As Markdown."""
    head = ["| case | target | measured, median of rounds | spread | limit on this machine | |", "|---|---|---|---|---|---|"]
    lines = [
        *head,
        *(target.row() for target in found),
        "",
        met(found),
        "",
        LIMITS,
    ]
    return "\n".join(lines) + "\n"


def met(found: Sequence[Target]) -> str:
    """How many are, in one sentence."""
    beyond = sum(target.met is False and not target.within_reach for target in found)
    return f"{sum(target.met is True for target in found)} of {len(found)} targets met; {beyond} of the others out of reach here."


LIMITS = """The limit on this machine is the same ratio, of the same rounds, for a server that costs nothing: for `resnet50` the best bare
`session.run` in the row's precision, with the CPU seconds of decoding each picture added (fp32 at the set-up that the first round found
best, just before and just after the row's own window, or, for one caller, in turns with its requests); for the near-empty model every CPU
at work on decoding and the model alone; past capacity the CPU time that the client leaves, over what it leaves at capacity. Where the limit
does not reach the target, no serving of this session and these pixels does."""


def _heavy(figures: Figures, cpus: int) -> Iterator[Target]:
    """Throughput of a model that the CPUs are busy with."""
    case = "resnet50"
    int8 = _with_decoding(figures.bare(case, "int8"), figures, cpus)
    for callers in (8, 32):
        bare = figures.bare_beside(case, "default", f"closed {callers}")
        rate, start = _rate(figures, case, "default", callers), f"`resnet50` fp32, {callers} callers, over"
        peer, pytorch = _best_rate(figures, case, callers), _rate(figures, case, "pytorch", callers)
        most = _with_decoding(bare, figures, cpus)
        yield _least(f"{start} the best bare `session.run`", 0.95, ratios(rate, bare), ratios(most, bare))
        yield _least(f"{start} the best peer", 1.05, ratios(rate, peer), ratios(most, peer))
        yield _least(f"{start} PyTorch behind FastAPI", 2.2, ratios(rate, pytorch), ratios(most, pytorch))
    for callers in (8, 32):
        rate, pytorch = _rate(figures, case, "int8", callers), _rate(figures, case, "pytorch", callers)
        what = f"`resnet50` int8, {callers} callers, over PyTorch behind FastAPI (speed on random weights)"
        yield _least(what, 3.2, ratios(rate, pytorch), ratios(int8, pytorch))


def _with_decoding(bare: ByRound, figures: Figures, cpus: int) -> ByRound:
    """Pictures per second of a bare run on CPUs that decode each one, too."""
    return {turn: cpus / (cpus / bare[turn] + cpu_s) for turn, cpu_s in figures.decoding_cpu_s().items() if turn in bare}


def _light(figures: Figures, cpus: int) -> Iterator[Target]:
    """A model that costs less than its picture: by the profile made for such, and by the default one beside it."""
    case, decoding = "near_empty", figures.decoding_cpu_s()
    most = {turn: cpus / cpu_s for turn, cpu_s in decoding.items()}
    for callers, name in product((8, 32, 64), LIGHT):
        rate, peer = _rate(figures, case, name, callers), _best_rate(figures, case, callers)
        yield _least(
            f"near-empty model, {name} profile, {callers} callers, over the best peer", 2.0, ratios(rate, peer), ratios(most, peer)
        )
    for callers, name in product((8, 32, 64), LIGHT):
        cpu, least = (
            _cpu(figures, case, name, callers),
            best_of(in_every_round({peer: _cpu(figures, case, peer, callers) for peer in PEERS}), min),
        )
        what = f"near-empty model, {name} profile, {callers} callers: server CPU seconds per request, over the thriftiest peer"
        yield _most(what, 0.5, ratios(cpu, least), ratios(decoding, least))


def _latencies(figures: Figures) -> Iterator[Target]:
    for name, limit in (("default", 1.08), ("latency", 1.05)):
        p50, alone = (figures.of("resnet50", name, "closed 1", key) for key in ("in_turns_p50_ms", "in_turns_bare_p50_ms"))
        yield _most(f"{name} profile, 1 caller: p50 over bare plus decoding, in turns", limit, ratios(p50, alone), ratios(alone, alone))
    for case, name in OURS:
        p99, p50 = (figures.of(case, name, "closed 64", key) for key in ("p99_ms", "p50_ms"))
        yield _most(f"p99 over p50, 64 callers, {_shown(case, name)}", 1.6, ratios(p99, p50))


def _past_capacity(figures: Figures, cpus: int) -> Iterator[Target]:
    for case, name in OURS:
        yield from _overload(figures, case, name, cpus)
    yield _errors(figures)
    yield _memory(figures)


def _int8_agreement() -> Target:
    """Of the trained classifiers of the parity table, which `make parity` measures."""
    path = RESULTS / "parity.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    trained = [row for row in rows if row["task"] == "image-classification" and "(trained)" in row["model"] and row["precision"] == "int8"]
    values = [row["agreement"]["value"] for row in trained]
    return _least("int8: top-1 agreement with PyTorch, trained classifiers of the parity table", 0.98, values)


def _overload(figures: Figures, case: str, name: str, cpus: int) -> Iterator[Target]:
    past = f"open {PAST}"

    def of(figure: str, load: str = past) -> ByRound:
        return figures.of(case, name, load, figure, "open")

    def left(load: str, rates: str) -> ByRound:
        """CPUs that the client leaves to the server."""
        rate, used, answered = of(rates, load), of("client_cpu_s", load), of("answered", load)
        return {turn: cpus - rate[turn] * used[turn] / answered[turn] for turn in rate if turn in used and answered.get(turn)}

    deadline_ms = profile_file.load(name).limits.request_timeout_ms
    shown = f"{PAST} % of capacity, {_shown(case, name)}"
    free = ratios(left(past, "answers_per_s"), left(CAPACITY.key, "requests_per_s"))
    goodput = ratios(of("requests_per_s"), figures.capacity_beside(case, name, past))
    yield _least(f"{shown}: goodput over capacity", 0.95, goodput, free)
    yield _most(f"{shown}: p99 of what was accepted over the deadline", 1.0, [value / deadline_ms for value in of("p99_ms").values()])
    yield Target(f"{shown}: median time of a refusal", REFUSAL_MS, False, tuple(of("failed_p50_ms").values()), " ms")


def _errors(figures: Figures) -> Target:
    """A load that was more than what the server answered in a closed loop just after it was not below capacity: the machine had slowed."""
    below = [f"open {percent}" for percent in BELOW]
    points = [
        point
        for case, name in OURS
        for load, part in [*((f"closed {callers}", "closed") for callers in CLOSED), *((load, "open") for load in below)]
        for point in figures.points(case, name, load, part).values()
        if "failed" in point
    ]
    counts = [point["failed"] for point in points if point.get("capacity_beside_per_s", [inf])[-1] >= point.get("rate", 0.0)]
    shown = "errors below capacity, from the first request after the start"
    if beyond := len(points) - len(counts):
        shown += f" ({beyond} of {len(points)} windows left out: the machine slowed, and they were past it)"
    return Target(shown, 0, False, (sum(counts),) if counts else ())


def _memory(figures: Figures) -> Target:
    loads = [f"closed {callers}" for callers in CLOSED]
    empty = figures.of("near_empty", "empty", "start", "pss_mib", "memory/empty").get(0)
    peers = {name: _without(figures.peak_mib("resnet50", name, loads), _empty(figures, name)) for name in PEERS}
    leanest = best_of(in_every_round(peers), min)
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
    return best_of(in_every_round({name: _rate(figures, case, name, callers) for name in PEERS}))


def _least(what: str, limit: float, values: Sequence[float], best: Sequence[float] = ()) -> Target:
    return Target(what, limit, True, tuple(values), best=tuple(best))


def _most(what: str, limit: float, values: Sequence[float], best: Sequence[float] = ()) -> Target:
    return Target(what, limit, False, tuple(values), best=tuple(best))


def _shown(case: str, name: str) -> str:
    return "`resnet50`" if case == "resnet50" else f"near-empty model, {name} profile"


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
