"""A picture of the dashboard's panels, drawn by matplotlib from what a real Prometheus answers to their queries; Grafana is not needed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from tests.watching import DEPLOY, Prometheus, filled_in

COLUMN_IN, LINE_IN = 0.72, 0.44  # of Grafana's grid, in inches
MARGIN_IN = 0.12
STEP_S = 2  # between two points; scrapes come every five seconds
INK, PAPER, PANEL, GRID, FAINT = "#d8d9da", "#111217", "#181b1f", "#2c3235", "#8e9297"
LINES = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#8ab8ff", "#ffee52", "#fa6400")
COLOURS = {"green": "#37872d", "red": "#c4162a", "blue": "#1f60c4", "#EAB839": "#b8860b"}
LIMIT = "#f2495c"


def draw(prometheus: Prometheus, begin: float, end: float, path: Path) -> None:
    """Write the picture of the time from `begin` to `end` (seconds since 1970); the numbers of the top row are those of `end`."""
    placed: list[dict[str, Any]] = json.loads((DEPLOY / "grafana" / "dashboards" / "ortserve.json").read_text(encoding="utf-8"))["panels"]
    lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in placed)
    width, height = 24 * COLUMN_IN, lines * LINE_IN
    with mpl.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.color": FAINT, "ytick.color": FAINT}):
        figure = Figure(figsize=(width, height), facecolor=PAPER)
        FigureCanvasAgg(figure)
        for panel in placed:
            at = panel["gridPos"]
            left, top = at["x"] * COLUMN_IN + MARGIN_IN / 2, at["y"] * LINE_IN
            box = (left, height - top - at["h"] * LINE_IN + MARGIN_IN / 2, at["w"] * COLUMN_IN - MARGIN_IN, at["h"] * LINE_IN - MARGIN_IN)
            x, y, w, h = box[0] / width, box[1] / height, box[2] / width, box[3] / height
            if panel["type"] == "row":
                figure.text(x, y + h / 2, panel["title"], va="center", fontsize=12, fontweight="bold")
            elif panel["type"] == "stat":
                _stat(figure.add_axes((x, y, w, h)), panel, prometheus, end)
            else:
                _frame(figure, panel["title"], (x, y, w, h), height)
                inset = (x + 0.62 / width, y + 0.62 / height, w - 0.78 / width, h - 0.98 / height)
                _graph(figure.add_axes(inset), panel, prometheus, begin, end)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=100, facecolor=PAPER)
    Image.open(buffer).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)  # a third of the bytes


def _frame(figure: Figure, title: str, box: tuple[float, float, float, float], height: float) -> None:
    back = figure.add_axes(box, facecolor=PANEL)
    back.set(xticks=[], yticks=[])
    for side in back.spines.values():
        side.set_color(GRID)
    figure.text(box[0] + 0.006, box[1] + box[3] - 0.09 / height, title, va="top", fontsize=9.5, fontweight="bold")


def _stat(axes: Axes, panel: dict[str, Any], prometheus: Prometheus, at: float) -> None:
    defaults, options = panel["fieldConfig"]["defaults"], panel["options"]
    target = panel["targets"][0]
    result = prometheus.ask("query", query=filled_in(target["expr"]), time=at)["result"]
    value = float(result[0]["value"][1]) if result else float("nan")
    if np.isnan(value):
        shown, colour = defaults["noValue"], PANEL
    else:
        steps = defaults["thresholds"]["steps"]
        colour = COLOURS[[step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]]
        named = options["textMode"] == "name"
        shown = _legend(target["legendFormat"], result[0]["metric"]).replace(" ", "\n") if named else _text(value, defaults["unit"])
    axes.set(xticks=[], yticks=[], facecolor=colour)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.text(0.5, 0.86, panel["title"], ha="center", va="center", transform=axes.transAxes, fontsize=9.5, fontweight="bold")
    size = 22 if len(shown) < 9 else 10.5
    axes.text(0.5, 0.42, shown, ha="center", va="center", transform=axes.transAxes, fontsize=size, fontweight="bold", color="white")


def _graph(axes: Axes, panel: dict[str, Any], prometheus: Prometheus, begin: float, end: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    bounds = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    times = np.arange(begin, end, STEP_S)
    curves = [curve for target in panel["targets"] for curve in _curves(prometheus, target, times)]
    axes.set_facecolor(PANEL)
    axes.grid(color=GRID, linewidth=0.6)
    axes.tick_params(length=0, labelsize=8)
    for side in axes.spines.values():
        side.set_visible(False)
    minutes = (times - begin) / 60
    axes.set_xlim(0, (end - begin) / 60)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda minute, _: f"{datetime.fromtimestamp(begin + minute * 60):%H:%M}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _text(value, defaults["unit"])))
    if not curves:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, defaults["noValue"], ha="center", va="center", transform=axes.transAxes, fontsize=13, color=FAINT)
        return
    free = [curve for curve in curves if curve[0] not in bounds]
    if defaults["custom"]["stacking"]["mode"] == "normal":
        values = [np.nan_to_num(curve[1]) for curve in free]
        axes.stackplot(minutes, values, labels=[curve[0] for curve in free], colors=LINES, alpha=0.55, linewidth=0)
        for colour, edge, (_, curve) in zip(LINES, np.cumsum(values, axis=0), free, strict=False):
            axes.plot(minutes, np.where(np.isnan(curve), np.nan, edge), color=colour, linewidth=1.2)
    else:
        for colour, (name, curve) in zip(LINES, free, strict=False):
            axes.plot(minutes, curve, color=colour, linewidth=1.4, label=name)
            axes.fill_between(minutes, 0, np.nan_to_num(curve), color=colour, alpha=0.08, linewidth=0)
    for name, curve in curves:
        if name in bounds:
            axes.plot(minutes, curve, color=LIMIT, linewidth=1.4, linestyle=(0, (6, 4)), label=name)
    axes.set_ylim(0, defaults["max"] * 1.02 if defaults["max"] else max(axes.get_ylim()[1], 1e-9))
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.02, -0.12), ncols=4, frameon=False, fontsize=8, labelcolor=INK, borderaxespad=0, handlelength=1
    )


def _curves(prometheus: Prometheus, target: dict[str, Any], times: Any) -> Sequence[tuple[str, Any]]:
    """Legend and values of every series of a query, NaN where there is none."""
    found = prometheus.ask("query_range", query=filled_in(target["expr"]), start=times[0], end=times[-1], step=STEP_S)["result"]
    curves = []
    for series in found:
        values = np.full(len(times), np.nan)
        for moment, value in series["values"]:
            values[round((moment - times[0]) / STEP_S)] = float(value)
        curves.append((_legend(target["legendFormat"], series["metric"]), values))
    return curves


def _legend(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), text)


def _text(value: float, unit: str) -> str:
    """The number as Grafana writes it in that unit."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        if value >= 60:
            return f"{value / 60:.1f} min"
        return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"
    return f"{value:.3g}{'/s' if unit == 'reqps' else ''}"


def noise(side: int) -> bytes:
    """A JPEG of that many pixels a side that is as hard to decode as a photograph."""
    small = np.random.default_rng(side).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR).save(file, "JPEG", quality=90)
    return file.getvalue()
