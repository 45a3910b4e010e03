"""What the catalogue promises is what is exposed; no caller makes a series; a batch counts as its parts would."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from ortserve import catalogue, errors
from ortserve.batching import Observer
from ortserve.gpu import GpuReading
from ortserve.metrics import UNKNOWN, Metrics, _BatchHistogram, render

FACTS = {
    "version": "v1",
    "task": "image-classification",
    "precision": "fp32",
    "sha256": "ab" * 32,
    "provider": "CPUExecutionProvider",
    "onnxruntime_version": "1.31.0",
}

BOUNDS: dict[str, Any] = {"queue_rows": 64, "batch_rows": 8, "slots": 2, "p99_target_s": 0.25, "wanted": "CUDA", "provider": "CUDA"}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The one value of that sample, None where there is no such series."""
    return metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of a service of one process."""
    return Metrics(service="shop", version="v1", runner="Classifier")


class Ready:
    """One of two workers is warm."""

    def count(self) -> tuple[int, int]:
        return 1, 2


def exercise(metrics: Metrics) -> None:
    """Touch every metric once."""
    model = metrics.for_model("digits")
    metrics.started()
    metrics.describe(model="digits", **FACTS)
    model.opened(**BOUNDS)
    metrics.scrape(Ready())
    metrics.request_started("/classify")
    model.decoded(0.004)
    model.queue_changed(1)
    model.batch_started(1, 1, [0.001])
    model.batch_padded(20, 4)
    model.batch_finished(1, 0, 0.02)
    model.answered(0.03)
    metrics.request_finished("/classify", 200, 0.031)
    metrics.refused("digits", "queue_full")
    metrics.decode_error("digits", "invalid_image")
    metrics.gpus([GpuReading(0, "GPU", 0.5, 1, 2)])


def test_every_metric_of_the_catalogue_is_exposed_with_its_type_labels_and_help(metrics: Metrics) -> None:
    exercise(metrics)
    families = {family.name: family for family in text_string_to_metric_families(render(metrics.registry)[0].decode())}
    for entry in catalogue.CATALOGUE:
        family = families.pop(entry.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (entry.kind, entry.meaning)
        assert {frozenset(sample.labels) - {"le"} for sample in family.samples} == {frozenset(entry.labels)}
    assert not families


def test_the_page_about_metrics_is_written_from_the_catalogue() -> None:
    page = Path(__file__).parents[2] / "docs" / "METRICS.md"
    assert page.read_text(encoding="utf-8") == catalogue.document(), "run: python -m ortserve.catalogue > docs/METRICS.md"


@pytest.mark.parametrize("entry", catalogue.CATALOGUE, ids=lambda entry: entry.name)
def test_names_follow_the_prometheus_conventions(entry: catalogue.Entry) -> None:
    assert entry.name.startswith(("ortserve_", "bentoml_service_"))
    assert entry.name.endswith("_total") == (entry.kind == "counter")
    assert (entry.mode is not None) == (entry.kind == "gauge")
    for unit in ("seconds", "bytes", "rows", "ratio"):
        assert (unit in entry.unit.split(",")[0].split()) == entry.name.endswith(f"_{unit}")
    assert list(entry.buckets) == sorted(set(entry.buckets))


def test_http_metrics_have_the_names_labels_and_buckets_of_bentoml(metrics: Metrics) -> None:
    from bentoml._internal.utils.metrics import DEFAULT_BUCKET

    http = {"endpoint": "/classify", "service_name": "shop", "service_version": "v1", "runner_name": "Classifier"}
    metrics.request_started("/classify")
    assert value(metrics, "bentoml_service_request_in_progress", **http) == 1
    metrics.request_finished("/classify", 404, 0.02)
    assert value(metrics, "bentoml_service_request_in_progress", **http) == 0
    assert value(metrics, "bentoml_service_request_total", **http, http_response_code="404") == 1
    histogram = metrics.histogram("bentoml_service_request_duration_seconds")
    assert tuple(histogram._upper_bounds) == DEFAULT_BUCKET


@pytest.mark.parametrize("probe", ["/livez", "/readyz", "/metrics"])
def test_a_probe_is_not_the_last_request(metrics: Metrics, probe: str) -> None:
    service = {"service_name": "shop", "service_version": "v1", "runner_name": "Classifier"}
    metrics.request_started(probe)
    assert value(metrics, "bentoml_service_last_request_timestamp_seconds", **service) == 0
    metrics.request_started("/classify")
    assert value(metrics, "bentoml_service_last_request_timestamp_seconds", **service) > 0


def test_reasons_and_models_that_nobody_loaded_share_one_series(metrics: Metrics) -> None:
    exercise(metrics)
    metrics.refused("digits", "first")
    metrics.decode_error("no-such-model", "invalid_image")
    before = render(metrics.registry)[0].count(b"\n")
    for number in range(100):
        metrics.refused("digits", f"reason-{number}")
        metrics.decode_error(f"model-{number}", "invalid_image")
    assert render(metrics.registry)[0].count(b"\n") == before
    assert value(metrics, "ortserve_refusals_total", model="digits", reason=UNKNOWN) == 101
    assert value(metrics, "ortserve_decode_errors_total", model=UNKNOWN, reason="invalid_image") == 101


@pytest.mark.parametrize("error", [errors.QueueFull, errors.DeadlineExceeded, errors.ShuttingDown, errors.InferenceError])
def test_every_refusal_stands_at_zero_before_the_first(metrics: Metrics, error: type[errors.ServingError]) -> None:
    metrics.for_model("digits")
    assert value(metrics, "ortserve_refusals_total", model="digits", reason=error.code) == 0


@pytest.mark.parametrize("values", [[], [0.0], [0.001], [0.001, 0.0011, 0.5, 99.0], [0.003] * 32])
def test_a_batch_of_values_counts_as_its_values_do_one_by_one(values: list[float]) -> None:
    registry = CollectorRegistry()
    one_by_one = Histogram("a", "a", registry=registry, buckets=(0.001, 0.01, 1.0))
    at_once = Histogram("b", "b", registry=registry, buckets=(0.001, 0.01, 1.0))
    for item in values:
        one_by_one.observe(item)
    _BatchHistogram(at_once).observe_all(values)
    for le in ("0.001", "0.01", "1.0", "+Inf"):
        assert registry.get_sample_value("a_bucket", {"le": le}) == registry.get_sample_value("b_bucket", {"le": le})
    assert registry.get_sample_value("b_sum") == pytest.approx(registry.get_sample_value("a_sum"), rel=1e-12)  # the order of adding differs


def test_a_gpu_that_hides_its_utilisation_still_shows_its_memory(metrics: Metrics) -> None:
    metrics.gpus([GpuReading(1, "MIG slice", None, 7, 9)])
    assert value(metrics, "ortserve_gpu_utilization_ratio", gpu="1") is None
    assert value(metrics, "ortserve_gpu_memory_used_bytes", gpu="1") == 7


def test_the_samples_of_a_histogram_come_buckets_first_and_rising(metrics: Metrics) -> None:
    metrics.for_model("b").decoded(0.1)
    metrics.for_model("a").decoded(0.1)
    text = render(metrics.registry)[0].decode()
    lines = [line for line in text.splitlines() if line.startswith("ortserve_decode_duration_seconds")]
    of_one = len(catalogue._SECONDS) + 3
    for model, part in (("a", lines[:of_one]), ("b", lines[of_one:])):
        assert all(f'model="{model}"' in line for line in part)
        bounds = [float(line.split('le="')[1].split('"')[0]) for line in part[:-2]]
        assert bounds == sorted(bounds)
        assert "_count" in part[-2]
        assert "_sum" in part[-1]
    assert "_created" not in text


def test_a_models_metrics_are_what_the_batcher_tells(metrics: Metrics) -> None:
    observer: Observer = metrics.for_model("digits")
    observer.batch_started(3, 2, [0.1, 0.2])
    assert metrics.for_model("digits") is observer
    assert value(metrics, "ortserve_batches_in_flight", model="digits") == 2
    assert value(metrics, "ortserve_queue_duration_seconds_count", model="digits") == 2


def test_a_model_on_another_provider_than_the_profiles_first_has_fallen_back(metrics: Metrics) -> None:
    model = metrics.for_model("digits")
    for provider, fallen in (("CUDA", 0), ("CPU", 1)):
        model.opened(**{**BOUNDS, "provider": provider})
        assert value(metrics, "ortserve_provider_fallback_workers", model="digits", wanted="CUDA") == fallen


@pytest.mark.parametrize("status", [200, 429, 500, 503, 504])
def test_an_endpoints_answers_stand_at_zero_before_the_first(metrics: Metrics, status: int) -> None:
    http = {"endpoint": "/classify", "service_name": "shop", "service_version": "v1", "runner_name": "Classifier"}
    metrics.expect("/classify")
    assert value(metrics, "bentoml_service_request_total", **http, http_response_code=str(status)) == 0
    metrics.request_started("/classify")
    metrics.request_finished("/classify", status, 0.01)
    assert value(metrics, "bentoml_service_request_total", **http, http_response_code=str(status)) == 1


def test_threads_lose_no_count(metrics: Metrics) -> None:
    model = metrics.for_model("digits")

    async def many() -> None:
        await asyncio.gather(*(asyncio.to_thread(lambda: [model.decoded(0.01) for _ in range(500)]) for _ in range(8)))

    asyncio.run(many())
    assert value(metrics, "ortserve_decode_duration_seconds_count", model="digits") == 4000
