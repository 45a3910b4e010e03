"""The dashboard: written by its script, current panel types only, variables in every query, metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
import yaml

from ortserve.catalogue import CATALOGUE
from tests.watching import DEPLOY, dashboard_queries, metric_names, recording_rules

TEXT = (DEPLOY / "grafana" / "dashboards" / "ortserve.json").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads(TEXT)
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]


def test_the_dashboard_is_what_its_script_writes() -> None:
    written = subprocess.run(
        [sys.executable, "-m", "deploy.grafana.dashboard"], cwd=DEPLOY.parent, capture_output=True, text=True, check=True
    ).stdout
    assert written == TEXT, "run: python -m deploy.grafana.dashboard > deploy/grafana/dashboards/ortserve.json"


def test_it_asks_what_a_person_on_call_asks_in_that_order() -> None:
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == [
        "Is it healthy?",
        "How much load?",
        "How late, and where does the time go?",
        "How full?",
        "What does the GPU do?",
    ]


def test_only_panel_types_that_grafana_still_has() -> None:
    """Not `graph`, `singlestat`, `table-old`, `heatmap-old`, which Grafana 11 took out with Angular."""
    assert {panel["type"] for panel in PANELS} <= {"row", "stat", "timeseries"}


def test_it_has_the_variables_datasource_and_model() -> None:
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "model"]
    assert {target["datasource"]["uid"] for panel in SHOWN for target in panel["targets"]} == {"${datasource}"}
    of_models = [query for query in dashboard_queries() if "model:" in query or "ortserve_model_info" in query]
    assert of_models
    assert [query for query in of_models if "$model" not in query and "instance_gpu" not in query] == []


def test_every_panel_says_what_it_shows_and_no_two_overlap() -> None:
    assert [panel["title"] for panel in SHOWN if not panel["description"].endswith(".") and "Alert" not in panel["description"]] == []
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)
    for one, other in combinations((panel["gridPos"] for panel in PANELS), 2):
        assert one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"] or one["y"] + one["h"] <= other["y"]
    assert max(panel["gridPos"]["x"] + panel["gridPos"]["w"] for panel in PANELS) == 24


@pytest.mark.parametrize("query", dashboard_queries())
def test_every_metric_of_a_query_is_recorded_or_in_the_catalogue(query: str) -> None:
    assert metric_names(query) <= {entry.name for entry in CATALOGUE}
    assert set(re.findall(r"[a-z_]+:ortserve_[a-z0-9_]+:[a-z0-9_]+", query)) <= set(recording_rules())


def test_rates_and_quantiles_are_left_to_the_recording_rules() -> None:
    assert not re.search(r"rate\(|increase\(|histogram_quantile", " ".join(dashboard_queries()))


def test_grafana_finds_the_dashboard_and_the_data_source_where_compose_puts_them() -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    mounts = dict(mount.split(":")[:2][::-1] for mount in compose["grafana"]["volumes"])
    provider = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "dashboards" / "ortserve.yaml").read_text(encoding="utf-8"))
    source = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))
    assert mounts[provider["providers"][0]["options"]["path"]] == "../grafana/dashboards"
    assert mounts["/etc/grafana/provisioning"] == "../grafana/provisioning"
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
