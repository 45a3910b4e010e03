"""The service under the real Prometheus and Alertmanager: what rules and dashboard ask for is there, an alert goes out and comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ortserve.catalogue import CATALOGUE
from tests.packages import add_package, picture, write_profile
from tests.serving import Server, until
from tests.watching import (
    Prometheus,
    Webhook,
    alert_rules,
    dashboard_queries,
    filled_in,
    metric_names,
    recording_rules,
    watching,
    webhook,
)

pytestmark = pytest.mark.e2e

PNG = {"content-type": "image/png"}
FASTER = 10  # every interval of the shipped configuration, divided: a scrape each half second; a `for` of 30 s is 3
GPU = {entry.name for entry in CATALOGUE if entry.name.startswith("ortserve_gpu_")}  # only where NVML sees a GPU: from the catalogue


def address(server: Server) -> str:
    """The server as a scrape target."""
    return server.base_url.removeprefix("http://")


@pytest.fixture(scope="module")
def hook() -> Iterator[Webhook]:
    """One webhook for every test of this file."""
    with webhook() as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, digits: Server, hook: Webhook) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the service before and after some requests."""
    with watching(tmp_path_factory.mktemp("watch"), [address(digits)], hook, faster=FASTER) as running:
        until(lambda: running.value("up") == 1)
        seven = (Path(__file__).parents[2] / "examples" / "seven.png").read_bytes()
        with httpx.Client(base_url=digits.base_url, timeout=60) as client:
            for _ in range(50):
                assert client.post("/classify", content=seven, headers=PNG).status_code == 200
        busy = [name for name, rule in recording_rules().items() if not metric_names(rule) & GPU and "refusals" not in name]
        until(lambda: all(running.value(name) is not None for name in busy))  # each group of rules has its own turn
        yield running


def test_every_metric_that_a_rule_or_the_dashboard_names_is_in_a_live_scrape(prometheus: Prometheus) -> None:
    """Those of a GPU too where there is one; elsewhere they are compared with the catalogue alone."""
    scraped = {name for name in prometheus.ask("label/__name__/values") if ":" not in name}
    scraped |= {name.removesuffix("_count") for name in scraped if name.endswith("_count")}
    asked = {*dashboard_queries(), *recording_rules().values(), *(rule["expr"] for rule in alert_rules().values())}
    missing = {name for expression in asked for name in metric_names(expression)} - scraped
    assert missing <= GPU


@pytest.mark.parametrize("query", dashboard_queries())
def test_every_query_of_the_dashboard_is_understood_and_answered(prometheus: Prometheus, query: str) -> None:
    result = prometheus.ask("query", query=filled_in(query))["result"]
    quiet = "refusals" in query or "ALERTS{" in query  # nothing was refused and nothing fires
    assert result or quiet or metric_names(query) & GPU


def test_every_rule_is_evaluated_without_a_fault(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(alert_rules()) + len(recording_rules())
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_a_service_that_is_well_raises_no_alert_but_that_it_has_no_gpu(prometheus: Prometheus) -> None:
    states = {name: prometheus.alert_state(name) for name in alert_rules()}
    assert {name for name, state in states.items() if state} <= {"OrtserveProviderFellBack"}


def test_an_alert_goes_out_when_the_service_is_killed_and_comes_back_after_its_restart(
    tmp_path: Path, digits_home: Path, hook: Webhook, serve: Callable[..., Server]
) -> None:
    with Server(digits_home) as first, watching(tmp_path, [address(first)], hook, faster=FASTER) as prometheus:
        until(lambda: prometheus.value("up") == 1)
        assert not hook.got("OrtserveDown", "firing")
        for process in first.processes():
            process.kill()
        until(lambda: hook.got("OrtserveDown", "firing"))
        fired = hook.first("OrtserveDown", "firing")
        assert fired is not None
        assert fired.labels["instance"] == address(first)
        assert fired.annotations["summary"] == f"{address(first)} does not answer"
        serve(port=first.port)
        until(lambda: hook.got("OrtserveDown", "resolved"))
    assert [alert.status for alert in hook.told if alert.name == "OrtserveDown"] == ["firing", "resolved"]


def test_an_overload_is_told_of_as_refusals(tmp_path: Path, hook: Webhook) -> None:
    """A queue of two rows before a slow model: the shipped expressions on what a live service really counts."""
    home = tmp_path / "home"
    add_package(home, "colours:1", seconds_per_row=0.05)
    mine = write_profile(tmp_path / "mine.yaml", batching={"max_batch_size": 1, "max_queue_size": 2})
    with (
        Server(home, env={"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "colours"}) as server,
        watching(tmp_path / "watch", [address(server)], hook, faster=FASTER) as prometheus,
        ThreadPoolExecutor(8) as callers,
    ):
        until(lambda: prometheus.value("up") == 1)

        def refused() -> bool:
            list(
                callers.map(lambda _: httpx.post(f"{server.base_url}/classify", content=picture("red"), headers=PNG, timeout=60), range(24))
            )
            return hook.got("OrtserveRefusals", "firing")

        until(refused)
    fired = hook.first("OrtserveRefusals", "firing")
    assert fired is not None
    assert fired.labels["model"] == "colours"
