"""Panels as Grafana reads them: numbers and lines, each of some queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, RED, BLUE = "green", "#EAB839", "red", "blue"

Query = tuple[str, str]  # PromQL and the legend of its series


def targets(queries: Sequence[Query], *, instant: bool) -> list[dict[str, Any]]:
    """The queries of a panel; an instant one asks for now only."""
    return [
        {
            "datasource": DATASOURCE,
            "refId": chr(ord("A") + index),
            "expr": expression,
            "legendFormat": legend,
            "instant": instant,
            "range": not instant,
        }
        for index, (expression, legend) in enumerate(queries)
    ]


def steps(*values: tuple[float | None, str]) -> dict[str, Any]:
    """Thresholds: from each value on its colour."""
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in values]}


def stat(
    title: str, help_: str, *queries: Query, unit: str = "short", thresholds: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """One number and its colour. `text="name"` shows the legend in its place; `none` is said where there is no such series."""
    defaults = {
        "unit": unit,
        "decimals": more.get("decimals"),
        "noValue": more.get("none", "-"),
        "color": {"mode": "thresholds"},
        "thresholds": thresholds or steps((None, BLUE)),
    }
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background",
        "graphMode": "none",
        "textMode": more.get("text", "value"),
        "justifyMode": "center",
    }
    return _panel("stat", title, help_, targets(queries, instant=True), {"defaults": defaults, "overrides": []}, options)


def graph(title: str, help_: str, *queries: Query, unit: str = "short", stacked: bool = False, **more: Any) -> dict[str, Any]:
    """Lines over time. `limit` is the legend of the line that is a bound (red, dashed); `none` is said where there is no such series."""
    overrides = []
    if "limit" in more:
        style = {"fill": "dash", "dash": [8, 6]}
        properties = {"custom.lineStyle": style, "color": {"mode": "fixed", "fixedColor": RED}, "custom.fillOpacity": 0}
        overrides.append(
            {
                "matcher": {"id": "byName", "options": more["limit"]},
                "properties": [{"id": key, "value": value} for key, value in properties.items()],
            }
        )
    defaults = {
        "unit": unit,
        "min": 0,
        "max": more.get("max"),
        "noValue": more.get("none", "-"),
        "color": {"mode": "palette-classic"},
        "custom": {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        },
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, help_, targets(queries, instant=False), {"defaults": defaults, "overrides": overrides}, options)


def _panel(
    kind: str, title: str, help_: str, asked: list[dict[str, Any]], fields: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    return {"type": kind, "title": title, "description": help_, "targets": asked, "fieldConfig": fields, "options": options}
