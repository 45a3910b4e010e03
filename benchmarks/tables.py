"""The result of a bench as Markdown: one table for each case and load, and a short one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.figures import Figures
from benchmarks.machine import headline, summary
from benchmarks.plan import SHORTEST_S, WEIGHTS
from benchmarks.systems import BY_NAME, EMPTY, SYSTEMS

CASES = {
    "resnet50": "`resnet50` from a 50 KB JPEG",
    "near_empty": "A model that does almost nothing, from the same JPEG",
    "tensor": "`resnet50` from pixels, nothing to decode",
    "classify_batch": "`resnet50`, four JPEGs in a request",
}


ONCE = "\\* of one model at least in the first round alone: not near the best there, or compared by no target."
README = ("default", "light", "int8", "pytorch", "ort_tuned2", "litserve", "pytriton", "batchable2")


def full(result: dict[str, Any], figures: Figures) -> str:
    """Every case and load."""
    lines = [_headline(result) + "; a dash: not measured.", "", *_starts(figures), "", *_bare(figures)]
    for case, title in CASES.items():
        for part, load in _loads(figures, case):
            lines += ["", f"### {title}: {_load_shown(load)}", "", *_one(figures, case, part, load)]
    return "\n".join(lines) + "\n"


def shortest(result: dict[str, Any], figures: Figures, met: str) -> str:
    """One row for each of the well-known: what a README has room for. `met` says how many targets are."""
    lines = [
        f"{_headline(result)}; {ONCE} {met} Requests per second, and what the server's CPUs work for one:",
        "",
        "| | `resnet50`, 8 callers | 32 | p99 ms at 32 | near-empty model, 8 callers | 32 | CPU ms/request |",
        "|---|---|---|---|---|---|---|",
    ]
    bare = [_bare_rate(figures, "resnet50", callers) for callers in (8, 32)]
    if any(rate != "-" for rate in bare):
        lines.append(f"| bare `session.run` at its best | {' | '.join(bare)} | | | | |")
    for name in README:
        cells = [
            *(_median(figures.of("resnet50", name, load, "requests_per_s")) for load in ("closed 8", "closed 32")),
            _median(figures.of("resnet50", name, "closed 32", "p99_ms")),
            *(_median(figures.of("near_empty", name, load, "requests_per_s")) for load in ("closed 8", "closed 32")),
            _median(figures.of("near_empty", name, "closed 32", "server_cpu_s_per_request"), 1000),
        ]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {_shown(figures, name, ('resnet50', 'near_empty'))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def short(result: dict[str, Any], figures: Figures) -> str:
    """Requests per second at 1, 8, 32 and 64 callers, or as many of these as the case was measured at."""
    lines = [f"{_headline(result)}. Requests per second:"]
    for case in CASES:
        measured = _loads(figures, case)
        callers = [number for number in (1, 8, 32, 64) if ("closed", f"closed {number}") in measured]
        if not callers:
            continue
        at = max(number for number in callers if number <= 32)
        heads = [CASES[case], "1 caller", *map(str, callers[1:]), f"p99 ms at {at}", f"CPU ms/request at {at}"]
        lines += ["", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        bare = ["" if number == 1 else _bare_rate(figures, case, number) for number in callers]
        if any(rate not in ("", "-") for rate in bare):
            lines.append(f"| best bare `session.run`, nothing decoded | {' | '.join(bare)} | | |")
        for system in SYSTEMS:
            rates = [figures.of(case, system.name, f"closed {number}", "requests_per_s") for number in callers]
            if not any(rates):
                if reason := figures.reason(case, system.name):
                    lines.append(f"| {system.shown} | {_cell(reason)} |{' |' * (len(heads) - 2)}")
                continue
            p99 = figures.of(case, system.name, f"closed {at}", "p99_ms")
            cpu = figures.of(case, system.name, f"closed {at}", "server_cpu_s_per_request")
            cells = [*(_median(rate) for rate in rates), _median(p99), _median(cpu, 1000)]
            lines.append(f"| {_shown(figures, system.name, (case,))} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", ONCE]) + "\n"


def _headline(result: dict[str, Any]) -> str:
    """With the windows of the near-empty model, which are shorter: each holds many times as many answers."""
    return headline(result, f" (near-empty model: {max(SHORTEST_S, result['seconds_each'] * WEIGHTS['near_empty']):.1f} s)")


def _shown(figures: Figures, name: str, cases: Sequence[str]) -> str:
    """The system, marked where in one of the cases others were measured in more rounds."""

    def rounds(case: str, system: str) -> int:
        return len(figures.of(case, system, "closed 8", "requests_per_s"))

    fewer = any(0 < rounds(case, name) < max(rounds(case, system.name) for system in SYSTEMS) for case in cases)
    return BY_NAME[name].shown + (" *" if fewer else "")


def _one(figures: Figures, case: str, part: str, load: str) -> Iterator[str]:
    yield "| system | requests/s (min to max) | mean ms | p50 ms | p99 ms | CPU ms/request | memory, MiB | no 200 | refused after, ms |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for system in SYSTEMS:
        points = figures.points(case, system.name, load, part)
        if not points:
            if reason := figures.reason(case, system.name):
                yield f"| {system.shown} | {_cell(reason)} | | | | | | | |"
            continue

        def of(figure: str, name: str = system.name) -> dict[int, float]:
            return figures.of(case, name, load, figure, part)

        rate = of("requests_per_s")
        if not rate:
            reason = next(iter(points.values())).get("reason", "")
            yield f"| {system.shown} | {_cell(reason)} | | | | | | | |"
            continue
        failed = f"{sum(of('failed').values()):.0f}"
        if part == "open" and (left := sum(of("unanswered").values())):
            failed += f", {left:.0f} unanswered"
        yield (
            f"| {system.shown} | {_spread(summary(list(rate.values())))} "
            f"| {_median(of('mean_ms'))} | {_median(of('p50_ms'))} | {_median(of('p99_ms'))} "
            f"| {_median(of('server_cpu_s_per_request'), 1000)} | {_median(of('pss_mib'))} | {failed} | {_median(of('failed_p50_ms'))} |"
        )


def _starts(figures: Figures) -> Iterator[str]:
    """How long each took to be ready, and what it said of the picture that PyTorch was asked about too."""
    yield "| system | ready after, s: `resnet50` | near-empty model | without a model: memory, MiB | |"
    yield "|---|---|---|---|---|"
    for system in (*SYSTEMS, EMPTY):
        ready = [figures.of(case, system.name, "start", "ready_s") for case in ("resnet50", "near_empty")]
        empty = figures.of("near_empty", system.name, "start", "pss_mib", "memory/empty")
        said = next((reason for case in CASES if (reason := figures.reason(case, system.name))), "")
        if any(ready) or empty or said:
            yield f"| {system.shown} | {_median(ready[0])} | {_median(ready[1])} | {_median(empty)} | {_cell(said)} |"


def _bare_rate(figures: Figures, case: str, callers: int) -> str:
    """Of the bare runs beside the default profile's window where there were some, else of those by themselves."""
    return _median(figures.bare_beside(case, "default", f"closed {callers}") or figures.bare(case))


def _bare(figures: Figures) -> Iterator[str]:
    yield "| bare `session.run` | threads | callers | batch | spinning | rows/s (min to max) | p50 ms |"
    yield "|---|---|---|---|---|---|---|"
    for case, precisions in (("resnet50", ("fp32", "fp16", "int8")), ("near_empty", ("fp32",))):
        for precision in precisions:
            for one in figures.setups(case, precision):
                what = f"{case} {precision}{', decoding too' if one['decoding'] else ''}"
                setup = f"{one['threads']} | {one['callers']} | {one['batch']} | {'yes' if one['spinning'] else 'no'}"
                yield f"| {what} | {setup} | {_spread(one['rows_per_s'])} | {_number(one['p50_ms']['median'])} |"


def _loads(figures: Figures, case: str) -> list[tuple[str, str]]:
    """(part, load) of everything that was measured in the case, in rising order."""
    found = {
        (part, load)
        for system in SYSTEMS
        for part in ("closed", "open")
        for load in figures.loads(case, system.name, part)
        if load.startswith(part) or load == "closed 256"
    }
    return sorted(found, key=lambda one: (not one[1].startswith("closed"), int(one[1].split()[1])))


def _load_shown(load: str) -> str:
    kind, number = load.split()
    return f"{number} {'caller' if number == '1' else 'callers'}" if kind == "closed" else f"open loop at {number} % of capacity"


def _median(values: dict[int, float], times: float = 1) -> str:
    return _number(summary(list(values.values()))["median"] * times) if values else "-"


def _spread(found: dict[str, float]) -> str:
    return f"{_number(found['median'])} ({_number(found['min'])} to {_number(found['max'])})"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cell(text: str) -> str:
    """On one line of a table; the end of it, where a server says what went wrong."""
    flat = " ".join(text.replace("|", "/").split())
    return flat if len(flat) < 200 else f"{flat[:60]} ... {flat[-130:]}"
