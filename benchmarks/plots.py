"""Plots of a bench: throughput against latency of each system, latency over load, and where the time of this service's answers goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.figures import Figures
from benchmarks.machine import summary
from benchmarks.systems import SYSTEMS, System

CALLERS = (1, 8, 32, 64, 256)
PERCENT = (50, 80, 95, 120, 400)
TITLES = {"resnet50": "resnet50 from a 50 KB JPEG", "near_empty": "a model that does almost nothing, from the same JPEG"}
STAGES = ("decode", "queue", "inference")


def draw(figures: Figures, folder: Path, stem: str) -> None:
    """`STEM_throughput.png`, `STEM_load.png`, `STEM_time.png`; each only where there is something to draw."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    for name, panel in (("throughput", _throughput), ("load", _load), ("time", _time)):
        drawn, axes = plt.subplots(1, 2, figsize=(15, 7), layout="constrained")
        if sum(panel(figures, case, ax) for case, ax in zip(TITLES, axes, strict=True)):  # both are drawn, whatever the first one says
            lines = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
            drawn.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=9)
            drawn.savefig(folder / f"{stem}_{name}.png", dpi=90, metadata={"Software": None})
        plt.close(drawn)


def _throughput(figures: Figures, case: str, ax: Any) -> bool:
    """p99 over requests per second: each line from 1 caller to the most. Right and low is good."""
    some = False
    for system in SYSTEMS:
        points = [
            (rate, p99)
            for callers in CALLERS
            if (rate := _median(figures, case, system.name, f"closed {callers}", "requests_per_s")) is not None
            and (p99 := _median(figures, case, system.name, f"closed {callers}", "p99_ms")) is not None
        ]
        if not points or not system.answers:
            continue
        some = True
        style = {"linewidth": 2.5, "linestyle": "-"} if system.kind == "ours" else {"linewidth": 1.2, "linestyle": "--"}
        ax.plot(*zip(*points, strict=True), marker="o", markersize=4, label=_label(system), color=_colour(system), **style)
    ax.set(title=TITLES[case], xlabel="requests per second", ylabel="p99, ms", yscale="log")
    ax.grid(alpha=0.3)
    return some


def _load(figures: Figures, case: str, ax: Any) -> bool:
    """p50 and p99 of 200s over the share of capacity, requests arriving as they do from strangers."""
    some = False
    for system in SYSTEMS:
        for figure, style in (("p50_ms", ":"), ("p99_ms", "-")):
            points = [
                (percent, value)
                for percent in PERCENT
                if (value := _median(figures, case, system.name, f"open {percent}", figure, "open")) is not None
            ]
            if not points:
                continue
            some = True
            label = f"{_label(system)}, {figure[:3]}"
            ax.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=label, color=_colour(system))
    ax.set(title=TITLES[case], xlabel="load, per cent of capacity (Poisson arrivals)", ylabel="ms", yscale="log", xscale="log")
    ax.set_xticks(PERCENT, [str(percent) for percent in PERCENT])
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)
    return some


def _time(figures: Figures, case: str, ax: Any) -> bool:
    """Mean time of an answer by stage, from the service's own Server-Timing; the rest is HTTP, the event loop and the client."""
    bars = []
    for callers in CALLERS:
        points = list(figures.points(case, "default", f"closed {callers}").values())
        points = [point for point in points if point.get("stages_ms")]
        if points:
            stages = {stage: summary([point["stages_ms"].get(stage, 0.0) for point in points])["median"] for stage in STAGES}
            whole = summary([point["mean_ms"] for point in points])["median"]
            bars.append((callers, stages | {"rest": max(0.0, whole - sum(stages.values()))}, whole))
    for index, (_, stages, whole) in enumerate(bars):
        bottom = 0.0
        for number, (stage, value) in enumerate(stages.items()):
            ax.bar(index, value / whole, bottom=bottom, color=f"C{number}", label=stage if index == 0 else None)
            bottom += value / whole
        ax.text(index, 1.01, f"{whole:.3g} ms", ha="center", fontsize=8)
    ax.set(title=f"{TITLES[case]}, default profile", xlabel="callers", ylabel="share of an answer's mean time")
    ax.set_xticks(range(len(bars)), [str(callers) for callers, _, _ in bars])
    return bool(bars)


def _label(system: System) -> str:
    return system.shown.replace("`", "")


def _colour(system: System) -> Any:
    """The same in every plot."""
    import matplotlib as mpl

    return mpl.colormaps["tab20"](SYSTEMS.index(system) % 20)


def _median(figures: Figures, case: str, system: str, load: str, figure: str, part: str = "closed") -> float | None:
    values = figures.of(case, system, load, figure, part)
    rates = figures.of(case, system, load, "requests_per_s", part)
    answered = [value for turn, value in values.items() if rates.get(turn, 0) > 0]
    return summary(answered)["median"] if answered else None
