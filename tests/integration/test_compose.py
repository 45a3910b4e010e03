"""The compose files: `docker-compose config` accepts both variants, every container is locked down, names agree with what they start."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from ortserve.profile_file import load, shipped_names
from tests.watching import DEPLOY, run_tool

pytestmark = pytest.mark.integration

BASE = DEPLOY / "compose" / "compose.yaml"
GPU = DEPLOY / "compose" / "compose.gpu.yaml"
VARIANTS = {"cpu": [BASE], "gpu": [BASE, GPU]}


def config(variant: str, *options: str) -> str:
    """What docker-compose makes of the files of a variant. Raises AssertionError with its words where it refuses them."""
    files = [argument for file in VARIANTS[variant] for argument in ("-f", str(file))]
    return run_tool("docker-compose", *files, "config", *options)


@pytest.fixture(scope="module", params=VARIANTS)
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The services of one variant, files merged and variables filled in."""
    found: dict[str, Any] = yaml.safe_load(config(request.param))["services"]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_is_quiet(variant: str) -> None:
    assert config(variant, "-q") == ""


def test_every_container_can_write_nowhere_and_gain_nothing(services: dict[str, Any]) -> None:
    assert services.keys() == {"ortserve", "prometheus", "alertmanager", "grafana"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert any(mount.startswith("/tmp") for mount in service["tmpfs"])
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"


def test_nothing_is_open_to_the_network_unless_it_is_asked_for(services: dict[str, Any]) -> None:
    assert [port for service in services.values() for port in service["ports"] if not str(port).startswith("127.0.0.1:")] == []


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        _, _, tag = service["image"].partition(":")
        assert tag in ("cpu", "cuda") if name == "ortserve" else re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


def test_only_the_gpu_variant_asks_for_a_gpu() -> None:
    cpu, gpu = (yaml.safe_load(config(variant))["services"]["ortserve"] for variant in ("cpu", "gpu"))
    assert "deploy" not in cpu
    assert gpu["deploy"]["resources"]["reservations"]["devices"] == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert (cpu["image"], gpu["image"]) == ("ortserve:cpu", "ortserve:cuda")


def test_a_stop_waits_longer_than_the_longest_request_of_the_profile_it_starts(services: dict[str, Any]) -> None:
    profile = load(services["ortserve"]["environment"]["ORTSERVE_PROFILE"])
    assert profile.name in shipped_names()
    grace_s = {"60s": 60, "1m": 60}[services["ortserve"]["stop_grace_period"]]
    assert grace_s > profile.limits.request_timeout_ms / 1000


def test_prometheus_finds_the_service_and_alertmanager_by_their_names_here(services: dict[str, Any]) -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    addresses = [
        *prometheus["scrape_configs"][0]["static_configs"][0]["targets"],
        *prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"],
    ]
    for address in addresses:
        name, _, port = address.partition(":")
        assert any(str(opened).split("/")[0].endswith(f":{port}") for opened in services[name]["ports"])
