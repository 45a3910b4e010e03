"""What a search leaves: a CSV of all trials and a picture of the Pareto front."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from ortserve.tune.candidate import leaves
from ortserve.tune.objective import Figures, Goal, front
from ortserve.tune.results import Contender, Trial, longest


def write_csv(path: Path, made: Sequence[Trial], contenders: Sequence[Contender]) -> None:
    """One line for each trial, and for each contender in each round; every key of its first execution as a column of its own."""
    measured = [field.name for field in fields(Figures)]
    settings = list(dict.fromkeys(key for trial in made for key, _ in leaves(trial.data) if not key.startswith("execution.1")))
    settings = [key for key in settings if key.startswith("execution.0.") or "." not in key if key != "description"]
    columns = ["part", "candidate", "label", "shipped", "rung", "seconds", *measured, "agreement", "reason", *settings]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="", lineterminator="\n")
        writer.writeheader()
        for trial in made:
            common = {"part": "search", "candidate": trial.id, "label": trial.label, "shipped": trial.shipped, "rung": trial.rung}
            more = {"seconds": trial.seconds, "agreement": trial.agreement, "reason": trial.reason}
            writer.writerow(dict(leaves(trial.data)) | common | more | (_rounded(trial.figures) if trial.figures else {}))
        for contender in contenders:
            one = contender.candidate
            common = {"part": "in turns", "candidate": one.id, "label": one.label, "shipped": one.shipped}
            for number, figures in enumerate(contender.rounds):
                writer.writerow(dict(leaves(one.data)) | common | {"rung": number} | _rounded(figures))


def _rounded(figures: Figures) -> dict[str, float]:
    return {key: round(value, 4) for key, value in asdict(figures).items()}


def plot(path: Path, made: Sequence[Trial], best: Contender, goal: Goal, title: str) -> None:
    """p99 of the open loop against the closed loop's requests/s: every candidate's longest trial, the front, the winner."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: it takes a second, and --help should not wait for it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [(trial, trial.figures) for trial in longest(made) if trial.figures is not None and trial.figures.answered]
    points = [(figures.requests_per_s, figures.p99_ms) for _, figures in shown]
    for rung, colour in ((0, "#c6c6c6"), (1, "#8fb3d9"), (2, "#2b6cb0")):
        group = [point for point, (trial, _) in zip(points, shown, strict=True) if trial.rung == rung and not trial.shipped]
        if group:
            label = f"measured {2**rung} times as long" if rung else "measured briefly"
            axes.scatter([x for x, _ in group], [y for _, y in group], s=28, color=colour, label=label)
    on_front = [points[index] for index in front(points)]
    if on_front:
        axes.plot(*zip(*on_front, strict=True), color="#2f855a", linewidth=1.2, drawstyle="steps-pre", label="Pareto front")
    for (trial, _), point in zip(shown, points, strict=True):
        if trial.shipped:
            axes.scatter(*point, marker="s", color="#dd6b20", s=48, zorder=3)
            axes.annotate(trial.label, point, textcoords="offset points", xytext=(6, 6), fontsize=8)
        if trial.id == best.candidate.id:
            axes.scatter(*point, marker="*", color="#c53030", s=190, zorder=4, label=f"chosen: {trial.label}")
    if goal.p99_ms is not None:
        axes.axhline(goal.p99_ms, color="#c53030", linewidth=0.8, linestyle="--", label=f"limit {goal.p99_ms:g} ms")
    axes.set_yscale("log")
    axes.margins(x=0.12, y=0.12)
    for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_formatter("{x:g}")
    axes.set_xlabel("requests/s, closed loop")
    axes.set_ylabel("p99 in ms, open loop")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
