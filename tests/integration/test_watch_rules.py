"""The rules by Prometheus' own tools: they parse, each alert fires and rests as it should, and each is explained in the runbook."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ortserve.catalogue import CATALOGUE
from tests.watching import DEPLOY, ROOT, RULES, alert_rules, metric_names, recording_rules, run_tool

pytestmark = pytest.mark.integration

SERIES = DEPLOY / "prometheus" / "tests" / "alerts.yaml"
RUNBOOK = ROOT / "docs" / "RUNBOOK.md"


def cases() -> list[dict[str, Any]]:
    """Every alert_rule_test of the rule tests."""
    return [case for test in yaml.safe_load(SERIES.read_text(encoding="utf-8"))["tests"] for case in test.get("alert_rule_test", ())]


def test_promtool_accepts_the_configuration_and_every_rule() -> None:
    assert f"SUCCESS: {len(RULES)} rule files found" in run_tool(
        "promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")
    )
    run_tool("promtool", "check", "rules", *map(str, RULES))


def test_amtool_accepts_the_receivers() -> None:
    run_tool("amtool", "check-config", str(DEPLOY / "alertmanager" / "alertmanager.yml"))


def test_the_alerts_fire_and_rest_on_their_series() -> None:
    run_tool("promtool", "test", "rules", str(SERIES))


@pytest.mark.parametrize("name", alert_rules())
def test_an_alert_that_could_never_fire_would_be_seen(name: str, tmp_path: Path) -> None:
    """The rule tests go red where that one alert's rule is silenced, and where it is not given its time."""
    for changed, replacement in (("expr", "vector(1) > 2"), ("for", "0s")):
        if changed not in alert_rules()[name]:
            continue
        copy = tmp_path / changed
        shutil.copytree(DEPLOY / "prometheus", copy)
        file = copy / "rules" / "alerts.yaml"
        rules = yaml.safe_load(file.read_text(encoding="utf-8"))
        next(rule for rule in rules["groups"][0]["rules"] if rule["alert"] == name)[changed] = replacement
        file.write_text(yaml.safe_dump(rules), encoding="utf-8")
        with pytest.raises(AssertionError, match=name):
            run_tool("promtool", "test", "rules", str(copy / "tests" / "alerts.yaml"))


@pytest.mark.parametrize("name", alert_rules())
def test_every_alert_has_series_that_fire_it_and_series_that_do_not(name: str) -> None:
    fires = {bool(case["exp_alerts"]) for case in cases() if case["alertname"] == name}
    assert fires == {True, False}


@pytest.mark.parametrize("name", alert_rules())
def test_every_alert_links_to_its_own_paragraph_of_the_runbook(name: str) -> None:
    rule = alert_rules()[name]
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/RUNBOOK.md#{name.lower()}"
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert section, f"docs/RUNBOOK.md has no section {name}"
    for part in ("**Means.**", "**Look.**", "**Do.**"):
        assert part in section[1]


def test_the_runbook_speaks_of_no_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (Ortserve\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)) == set(alert_rules())


@pytest.mark.parametrize("expression", [*recording_rules().values(), *(rule["expr"] for rule in alert_rules().values())])
def test_every_metric_of_a_rule_is_in_the_catalogue(expression: str) -> None:
    assert metric_names(expression) <= {entry.name for entry in CATALOGUE}


@pytest.mark.parametrize("name", recording_rules())
def test_recording_rules_are_named_level_metric_operation(name: str) -> None:
    assert re.fullmatch(r"(job|instance)(_model|_code|_gpu|_reason)*:ortserve_[a-z0-9_]+:[a-z0-9_]+", name)


def test_every_recording_rule_is_used() -> None:
    dashboard = (DEPLOY / "grafana" / "dashboards" / "ortserve.json").read_text(encoding="utf-8")
    used = dashboard + "".join((DEPLOY / "prometheus" / "rules" / name).read_text() for name in ("alerts.yaml", "recording.yaml"))
    assert [name for name in recording_rules() if used.count(name) < 2] == []
