"""`make bench-quick`: this service beside BentoML's own batching: what HTTP keeps of bare `session.run`, what serving costs, starts.

The bench's sessions, fewer of them, resumable as it is. Medians and their spread are written to `benchmarks/results/quick.json` and, for
people, `quick.md` (resnet50), `overhead.md` (a model that does almost nothing) and `start.md`. Absolute figures are this machine's; the
ratios are what counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from benchmarks import bench
from benchmarks.benches import quick
from benchmarks.figures import ByRound, Figures, ratios
from benchmarks.machine import headline, summary
from benchmarks.places import RESULTS

CALLERS = (1, 8, 32)
NAMES = {"default": "this service, default profile", "batchable": "BentoML `batchable=True`, same graph"}


def main(rounds: int = 5, seconds: float = 6.0, fresh: bool = False) -> None:
    """Measure and write. SECONDS is the time of each measurement."""
    result, state = bench.run(quick(rounds=rounds, seconds=seconds), fresh=fresh)
    figures = Figures(result["points"])
    (RESULTS / "quick.json").write_text(bench.as_json(result), encoding="utf-8")
    for name, text in (
        ("quick", resnet50_table(result, figures)),
        ("overhead", overhead_table(result, figures)),
        ("start", start_table(figures)),
    ):
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
        print(text)
    state.finish()


def resnet50_table(result: dict[str, Any], figures: Figures) -> str:
    """What HTTP keeps of the bare runs."""
    bare = figures.bare("resnet50")
    lines = [
        f"{headline(result)}. Best bare `session.run`: {_spread(bare, '.1f')} pictures/s.",
        "",
        "| callers | system | requests/s (min to max) | over bare, by round | p50 ms | p99 ms | CPU ms/request | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for callers, name, rate in _rows(figures, "resnet50"):
        over = summary(ratios(rate, bare))
        lines.append(
            f"| {callers} | {NAMES[name]} | {_spread(rate, '.1f')} | {over['median']:.2f} ({over['min']:.2f} to {over['max']:.2f}) "
            f"| {_rest(figures, 'resnet50', name, callers, '.0f')} |"
        )
    return "\n".join(lines) + "\n"


def overhead_table(result: dict[str, Any], figures: Figures) -> str:
    """What serving costs where the model costs nothing."""
    lines = [
        f"{headline(result)}; the client shares the CPUs.",
        "",
        "| callers | system | requests/s (min to max) | p50 ms | p99 ms | CPU ms/request | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for callers, name, rate in _rows(figures, "near_empty"):
        lines.append(f"| {callers} | {NAMES[name]} | {_spread(rate, '.0f')} | {_rest(figures, 'near_empty', name, callers, '.1f')} |")
    return "\n".join(lines) + "\n"


def start_table(figures: Figures) -> str:
    """What a start costs. The first of each fills the file cache and is left out."""
    lines = ["| start | seconds to ready | memory (PSS), MiB |", "|---|---|---|"]
    for name, part, shown in (("default", "memory", "this service, `digits`"), ("empty", "memory/empty", "an empty `bentoml serve`")):
        ready, memory = (figures.of("digits", name, "start", figure, part) for figure in ("ready_s", "pss_mib"))
        later = [{turn: value for turn, value in of_one.items() if turn > 0} for of_one in (ready, memory)]
        lines.append(f"| {shown} | {summary(list(later[0].values()))['median']:.1f} | {summary(list(later[1].values()))['median']:.0f} |")
    return "\n".join(lines) + "\n"


def _rows(figures: Figures, case: str) -> Iterator[tuple[int, str, ByRound]]:
    for callers in CALLERS:
        for name in NAMES:
            if rate := figures.of(case, name, f"closed {callers}", "requests_per_s"):
                yield callers, name, rate


def _rest(figures: Figures, case: str, name: str, callers: int, form: str) -> str:
    """p50, p99, CPU per request, how many failed."""
    load = f"closed {callers}"
    p50, p99 = (summary(list(figures.of(case, name, load, figure).values()))["median"] for figure in ("p50_ms", "p99_ms"))
    cpu = summary(list(figures.of(case, name, load, "server_cpu_s_per_request").values()))["median"] * 1000
    failed = sum(figures.of(case, name, load, "failed").values())
    return f"{p50:{form}} | {p99:{form}} | {cpu:.2f} | {failed:.0f}"


def _spread(values: ByRound, form: str) -> str:
    found = summary(list(values.values()))
    return f"{found['median']:{form}} ({found['min']:{form}} to {found['max']:{form}})"


if __name__ == "__main__":
    typer.run(main)
