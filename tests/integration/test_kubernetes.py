"""`deploy/kubernetes`: what kubectl makes of both overlays is valid, and agrees with itself, its profile and what the service tells."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from ortserve import profile_file
from ortserve.catalogue import CATALOGUE
from ortserve.execution import GPU_PROVIDERS
from ortserve.profile import Profile
from ortserve.remote_engine import GOING_S
from ortserve.services import RUNNER

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
VERSIONS = ("1.30", "1.37")  # the first that knows every field that is used, and the newest whose schemas there are


@cache
def rendered(overlay: str) -> str:
    """What `kubectl kustomize` prints."""
    if shutil.which("kubectl") is None:
        pytest.fail("there is no kubectl here: install it (1.21 or later), the overlays cannot be rendered without it")
    result = subprocess.run(["kubectl", "kustomize", str(FOLDER / overlay)], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def resources(overlay: str) -> list[dict[str, Any]]:
    """Every resource of the overlay, fresh each time."""
    return list(yaml.safe_load_all(rendered(overlay)))


def the(overlay: str, kind: str, name: str = "model-service") -> dict[str, Any]:
    """The one resource of that kind and name."""
    (found,) = [item for item in resources(overlay) if item["kind"] == kind and item["metadata"]["name"].startswith(name)
                and (kind != "Service" or item["metadata"]["name"] == name)]  # fmt: skip
    return found


def pod(overlay: str) -> dict[str, Any]:
    """The Deployment's pod."""
    spec: dict[str, Any] = the(overlay, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(overlay: str) -> dict[str, Any]:
    """The one container of the pod."""
    (only,) = pod(overlay)["containers"]
    return dict(only)


@cache
def settings(overlay: str) -> Profile:
    """The profile in the ConfigMap, as the service would read it."""
    (text,) = the(overlay, "ConfigMap")["data"].values()
    assert text == (FOLDER / overlay / "profile.yaml").read_text(encoding="utf-8")
    return profile_file.load(str(FOLDER / overlay / "profile.yaml"))


@cache
def service_monitor_schema() -> Mapping[str, Any]:
    """The operator's schema, as strict as the cluster: what it does not name is refused."""

    def close(schema: Any) -> Any:
        if isinstance(schema, list):
            return [close(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        closed = {key: close(value) for key, value in schema.items()}
        if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
            closed["additionalProperties"] = False
        return closed

    schema = close(yaml.safe_load((ROOT / "tests/schemas/servicemonitor.yaml").read_text(encoding="utf-8")))
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which the operator leaves to it
    return dict(schema)


def validate(resource: Mapping[str, Any], version: str) -> None:
    """Raises jsonschema.ValidationError where the cluster would refuse the resource, or drop a part of it."""
    if resource["kind"] == "ServiceMonitor":
        jsonschema.validate(resource, service_monitor_schema())
    else:
        kubernetes_validate.validate(resource, version, strict=True)


# --- valid ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_resource_is_valid(overlay: str, version: str) -> None:
    kinds = []
    for resource in resources(overlay):
        validate(resource, version)
        kinds.append(resource["kind"])
    assert sorted(kinds) == sorted(
        [
            "ConfigMap",
            "Deployment",
            "Service",
            "Service",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "HorizontalPodAutoscaler",
            "ServiceMonitor",
        ]
    )


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0, "livenessProb"), {}),
        ("Deployment", ("spec", "template", "spec", "terminationGracePeriodSeconds"), "110s"),
        ("HorizontalPodAutoscaler", ("spec", "metrics", 0, "pods", "target", "averageVal"), "8"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "prot"), "metrics"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), "15 seconds"),
    ],
)
def test_a_mistake_would_be_found(kind: str, path: tuple[str | int, ...], value: Any) -> None:
    resource = copy.deepcopy(the("cpu", kind))
    place: Any = resource
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(resource, VERSIONS[-1])


# --- agrees with itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_selects_the_pods_of_the_deployment(overlay: str) -> None:
    labels = the(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert the(overlay, "Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert the(overlay, "Service")["spec"]["selector"] == labels
    assert the(overlay, "Service", "model-service-metrics")["spec"]["selector"] == labels
    assert the(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert the(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    for constraint in pod(overlay)["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == labels
    assert the(overlay, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == the(overlay, "Deployment")["metadata"]["name"]
    assert "replicas" not in the(overlay, "Deployment")["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_monitor_finds_the_metrics_service_alone(overlay: str) -> None:
    monitor = the(overlay, "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    found = [item for item in resources(overlay) if item["kind"] == "Service" and wanted <= item["metadata"]["labels"].items()]
    assert [item["metadata"]["name"] for item in found] == ["model-service-metrics"]
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in found[0]["spec"]["ports"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_alerts_know_the_pods_by_their_job(overlay: str) -> None:
    (relabelling,) = the(overlay, "ServiceMonitor")["spec"]["endpoints"][0]["relabelings"]
    assert relabelling["targetLabel"] == "job"
    alerts = (ROOT / "deploy/prometheus/rules/alerts.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r'job="(\w+)"', alerts)) == {relabelling["replacement"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_figures_are_on_a_port_of_their_own_closed_to_all_but_prometheus(overlay: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    assert ports == {"http": 3000, "metrics": settings(overlay).metrics.port}
    assert [port["targetPort"] for port in the(overlay, "Service")["spec"]["ports"]] == ["http"]
    policy = the(overlay, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    opened = {port["port"]: "from" in rule for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == {"http": False, "metrics": True}  # True: to some only
    (source,) = [rule["from"] for rule in policy["ingress"] if "from" in rule]
    assert source == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_under_way_is_answered_before_the_pod_goes(overlay: str) -> None:
    limits = settings(overlay).limits
    longest_s = (limits.body_timeout_ms + limits.request_timeout_ms) / 1000
    hook_s = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = settings(overlay).stopping.drain_delay_ms / 1000
    assert hook_s > longest_s
    assert pod(overlay)["terminationGracePeriodSeconds"] > hook_s + drain_s + longest_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_probes_ask_what_the_service_answers(overlay: str) -> None:
    probes = {name: container(overlay)[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["httpGet"] for name, probe in probes.items()} == {
        "startup": {"path": "/readyz", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }
    start_s = probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"]
    assert start_s >= (1800 if overlay == "gpu" else 120)
    assert the(overlay, "Deployment")["spec"].get("progressDeadlineSeconds", 600) > start_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_may_do_nothing_it_need_not(overlay: str) -> None:
    context = pod(overlay)["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(overlay)["automountServiceAccountToken"] is False
    assert container(overlay)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod(overlay).keys()
    kinds = {volume["name"]: set(volume) - {"name"} for volume in pod(overlay)["volumes"]}
    assert kinds == {"tmp": {"emptyDir"}, "bentoml-home": {"emptyDir"}, "profile": {"configMap"}}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(overlay)["volumeMounts"]}
    variables = {variable["name"]: variable["value"] for variable in container(overlay)["env"]}
    assert mounts["/tmp"] == "tmp"
    assert mounts[variables["BENTOML_HOME"]] == "bentoml-home"
    assert mounts[variables["ORTSERVE_PROFILE"].removesuffix("/profile.yaml")] == "profile"
    assert pod(overlay)["volumes"][-1]["configMap"]["name"] == the(overlay, "ConfigMap")["metadata"]["name"]


def test_a_gpu_is_asked_for_where_the_profile_wants_one() -> None:
    for overlay in OVERLAYS:
        wants = {execution.provider in GPU_PROVIDERS for execution in settings(overlay).execution}
        gets = container(overlay)["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert (wants, gets) == ({overlay == "gpu"}, int(overlay == "gpu"))


# --- agrees with its profile and with what the service tells -----------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_profile_fits_the_pod_and_gives_its_reasons(overlay: str) -> None:
    mine = settings(overlay)
    for execution in mine.execution:
        assert mine.limits.max_images_per_request <= execution.batching.max_queue_size
    memory = container(overlay)["resources"]["limits"]["memory"]
    memory_bytes = int(memory[:-2]) * {"Mi": 2**20, "Gi": 2**30}[memory[-2:]]
    assert mine.limits.max_request_bytes <= mine.limits.max_buffered_bytes < memory_bytes / 4
    lines = (FOLDER / overlay / "profile.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"^[ -]*\w+: *[^ #]", line)]
    assert [line for line in values if " # " not in line and not line.lstrip(" -").startswith(("description:", "provider:"))] == []


def adapter_rules() -> dict[str, dict[str, Any]]:
    """The adapter's rules by the name of the metric they make."""
    rules = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text(encoding="utf-8"))["rules"]
    return {rule["name"]["as"]: rule for rule in rules}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_autoscaler_asks_for_what_the_adapter_makes(overlay: str) -> None:
    asked = {metric["pods"]["metric"]["name"] for metric in the(overlay, "HorizontalPodAutoscaler")["spec"]["metrics"]}
    assert asked == adapter_rules().keys()


def test_the_adapter_reads_series_that_the_service_has() -> None:
    suffixes = {"histogram": ("_count", "_sum", "_bucket"), "counter": ("",), "gauge": ("",)}
    series = {entry.name + suffix: entry for entry in CATALOGUE for suffix in suffixes[entry.kind]}
    for name, rule in adapter_rules().items():
        assert set(rule) == {"seriesQuery", "resources", "name", "metricsQuery"}
        assert rule["resources"] == {"overrides": {label: {"resource": label} for label in ("namespace", "pod")}}
        named = set(re.findall(r"\b(?:ortserve|bentoml)_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
        assert named, name
        assert named <= series.keys()
        source = series[rule["seriesQuery"].partition("{")[0]]
        assert "endpoint" not in rule["metricsQuery"] or "endpoint" in source.labels
        assert rule["metricsQuery"].count("<<.GroupBy>>") == rule["metricsQuery"].count("sum(")


# --- API pods in front of runner pods ---------------------------------------------------------------------------------


def named(kind: str, name: str) -> dict[str, Any]:
    """The one resource of the split overlay of that kind and exact name."""
    (found,) = [item for item in resources("split") if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def half(name: str) -> dict[str, Any]:
    """The one container of that Deployment of the split overlay."""
    (only,) = named("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return dict(only)


def variables(name: str) -> dict[str, str]:
    """The environment of that container."""
    return {variable["name"]: variable["value"] for variable in half(name)["env"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_resource_of_the_split_overlay_is_valid(version: str) -> None:
    for resource in resources("split"):
        validate(resource, version)


def test_the_api_pods_look_for_the_runner_where_it_is() -> None:
    service = named("Service", "model-runner")["spec"]
    (port,) = service["ports"]
    assert variables("model-service")["BENTOML_SERVE_DEPENDS"] == f"{RUNNER}=http://model-runner:{port['port']}"
    assert half("model-service")["args"] == ["start-http-server"]
    assert half("model-runner")["args"] == ["start-http-server", "--service-name", RUNNER]
    assert half("model-service")["image"] == half("model-runner")["image"]  # one bento
    assert (port["targetPort"], service["selector"]) == ("http", named("Deployment", "model-runner")["spec"]["selector"]["matchLabels"])


def test_both_halves_run_the_one_profile_that_places_the_model_apart() -> None:
    (config,) = [item for item in resources("split") if item["kind"] == "ConfigMap"]
    assert profile_file.load(str(FOLDER / "split" / "profile.yaml")).placement == "separate"
    for name in ("model-service", "model-runner"):
        volumes = named("Deployment", name)["spec"]["template"]["spec"]["volumes"]
        assert volumes[-1]["configMap"]["name"] == config["metadata"]["name"]
        mounts = {mount["mountPath"]: mount["name"] for mount in half(name)["volumeMounts"]}
        assert mounts[variables(name)["ORTSERVE_PROFILE"].removesuffix("/profile.yaml")] == "profile"


def test_only_the_runner_asks_for_the_gpu() -> None:
    assert half("model-runner")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in half("model-service")["resources"]["limits"]


def test_rows_reach_the_runner_from_the_api_pods_alone() -> None:
    api = named("Deployment", "model-service")["spec"]["template"]["metadata"]["labels"]
    runner = named("Deployment", "model-runner")["spec"]["template"]["metadata"]["labels"]
    policy = named("NetworkPolicy", "model-runner")["spec"]
    assert policy["podSelector"]["matchLabels"] == runner
    assert policy["egress"] == []
    (rows,) = [rule["from"] for rule in policy["ingress"] if rule["ports"][0]["port"] == "http"]
    assert rows == [{"podSelector": {"matchLabels": api}}]
    to_runner, to_names = named("NetworkPolicy", "model-service")["spec"]["egress"]
    assert to_runner == {"to": [{"podSelector": {"matchLabels": runner}}], "ports": [{"port": "http", "protocol": "TCP"}]}
    assert {port["port"] for port in to_names["ports"]} == {53}


def test_a_runner_that_goes_has_time_for_what_it_has() -> None:
    mine = profile_file.load(str(FOLDER / "split" / "profile.yaml"))
    spec = named("Deployment", "model-runner")["spec"]["template"]["spec"]
    hook_s = half("model-runner")["lifecycle"]["preStop"]["sleep"]["seconds"]
    ends_s = max(mine.stopping.drain_delay_ms / 1000, GOING_S) + mine.limits.request_timeout_ms / 1000
    assert spec["terminationGracePeriodSeconds"] > hook_s + ends_s
    start_s = {name: half(name)["startupProbe"] for name in ("model-service", "model-runner")}
    for name, probe in start_s.items():
        assert probe["periodSeconds"] * probe["failureThreshold"] < named("Deployment", name)["spec"]["progressDeadlineSeconds"]
