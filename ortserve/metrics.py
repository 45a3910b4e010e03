"""What one worker process counts, and the text that all workers of a service show together. The list of metrics is `catalogue.py`.

Import this after `multiprocess.enter()`: where that was called, several worker processes add up in one folder; where it was
not, everything works inside the one process.

HTTP metrics carry BentoML's names, labels and buckets (1.4: `RunnerTrafficMetricsMiddleware` under the namespace
`bentoml_service`), so that its dashboards work; but `endpoint` is a route template, never the path a caller sent.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric, Sample
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from ortserve import errors, gpu, multiprocess
from ortserve.catalogue import CATALOGUE, Entry
from ortserve.gpu import GpuReading
from ortserve.readiness import Readiness

UNMATCHED = "unmatched"  # the endpoint label of every path that is no route: callers cannot make series
UNKNOWN = "unknown"  # the model or reason label of anything that is not in its closed set
PROBES = frozenset({"/healthz", "/livez", "/readyz", "/metrics"})  # do not count as a "last request", as in BentoML
_ANSWERS = (200, 429, 500, 503, 504)  # statuses of an endpoint, less those that are the caller's fault; `replies.py` has the table


def _codes(root: type[errors.OrtServeError]) -> frozenset[str]:
    return frozenset({root.code}).union(*(_codes(child) for child in root.__subclasses__()))


REFUSAL_REASONS = _codes(errors.ServingError)
DECODE_REASONS = _codes(errors.RequestError)


class _BatchHistogram:
    """A bound histogram that takes the values of a whole batch for little more than the cost of one: most fall into the same bucket.

    Writes what `prometheus_client.Histogram.observe` writes, its sum and its buckets: 32 values in 13 us instead of 80, in a worker.
    """

    def __init__(self, child: Histogram) -> None:
        self._bounds = child._upper_bounds
        self._sum = child._sum
        self._buckets = child._buckets

    def observe(self, value: float, times: int) -> None:
        """Count that value so many times."""
        self._sum.inc(value * times)
        self._buckets[bisect_left(self._bounds, value)].inc(times)

    def observe_all(self, values: Sequence[float]) -> None:
        """Count every one of them."""
        if not values:
            return
        self._sum.inc(sum(values))
        counts: dict[int, int] = {}
        for value in values:
            index = bisect_left(self._bounds, value)
            counts[index] = counts.get(index, 0) + 1
        for index, count in counts.items():
            self._buckets[index].inc(count)


class ModelMetrics:
    """What one model counts, every series bound once. Satisfies the batcher's `Observer`. Times are seconds, sizes rows."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        def histogram(name: str) -> Histogram:
            return metrics.histogram(name).labels(model)

        self._metrics = metrics
        self._model = model
        self._queue_rows = metrics.gauge("ortserve_queue_size_rows").labels(model)
        self._in_flight = metrics.gauge("ortserve_batches_in_flight").labels(model)
        self._batch_rows = histogram("ortserve_batch_size_rows")
        self._tokens: tuple[Counter, ...] | None = None
        self._queue_s = _BatchHistogram(histogram("ortserve_queue_duration_seconds"))
        self._inference_s = histogram("ortserve_inference_duration_seconds")
        self._decode_s = histogram("ortserve_decode_duration_seconds")
        self._request_s = histogram("ortserve_request_duration_seconds")
        # Every reason starts at 0: a first refusal that appears at 1 is an increase no rate() can see.
        refusals, decode_errors = metrics.counter("ortserve_refusals_total"), metrics.counter("ortserve_decode_errors_total")
        self._refusals = {reason: refusals.labels(model, reason) for reason in sorted({*REFUSAL_REASONS, UNKNOWN})}
        self._decode_errors = {reason: decode_errors.labels(model, reason) for reason in sorted({*DECODE_REASONS, UNKNOWN})}
        self.queue_changed(0)
        self._in_flight.set(0)

    def opened(self, *, queue_rows: int, batch_rows: int, slots: int, p99_target_s: float, wanted: str, provider: str) -> None:
        """The model is open on `provider`, where the profile would have had `wanted`; the other numbers are its bounds and its aim."""
        metrics = self._metrics
        metrics.gauge("ortserve_queue_capacity_rows").labels(self._model).set(queue_rows)
        metrics.gauge("ortserve_batch_limit_rows").labels(self._model).set(batch_rows)
        metrics.gauge("ortserve_batch_slots").labels(self._model).set(slots)
        metrics.gauge("ortserve_p99_target_seconds").labels(self._model).set(p99_target_s)
        metrics.gauge("ortserve_provider_fallback_workers").labels(self._model, wanted).set(provider != wanted)

    def queue_changed(self, rows: int) -> None:
        """The queue now holds that many rows."""
        self._queue_rows.set(rows)

    def batch_started(self, rows: int, in_flight: int, queue_s: Sequence[float]) -> None:
        """A batch of that many rows went to the session, the `in_flight`-th now; each of its requests had waited `queue_s`."""
        self._in_flight.set(in_flight)
        self._batch_rows.observe(rows)
        self._queue_s.observe_all(queue_s)

    def batch_padded(self, tokens: int, padding_tokens: int) -> None:
        """A batch of texts went to the session: so many tokens of theirs, and so many put behind them."""
        if self._tokens is None:  # at the first batch: a model of pictures has no such series
            names = ("ortserve_tokens_total", "ortserve_padding_tokens_total")
            self._tokens = tuple(self._metrics.counter(name).labels(self._model) for name in names)
        for counter, count in zip(self._tokens, (tokens, padding_tokens), strict=True):
            counter.inc(count)

    def batch_finished(self, rows: int, in_flight: int, inference_s: float) -> None:  # noqa: ARG002  rows is the Observer's
        """A batch came back after `inference_s`; `in_flight` others are still there."""
        self._in_flight.set(in_flight)
        self._inference_s.observe(inference_s)

    def decoded(self, seconds: float) -> None:
        """A request's pictures became pixels in that time."""
        self._decode_s.observe(seconds)

    def answered(self, seconds: float) -> None:
        """A request's answer was ready that long after the request arrived."""
        self._request_s.observe(seconds)

    def refused(self, reason: str, times: int = 1) -> None:
        """A request, or so many, were refused; `reason` is the code of a ServingError."""
        self._refusals.get(reason, self._refusals[UNKNOWN]).inc(times)

    def decode_error(self, reason: str) -> None:
        """A request's input was unusable; `reason` is the code of a RequestError."""
        self._decode_errors.get(reason, self._decode_errors[UNKNOWN]).inc()


class Metrics:
    """Everything one worker process counts. One per process; safe to use from several threads.

    `service` and `version` are the bento's, `runner` the BentoML service's name (BentoML's label `runner_name`). `registry`
    defaults to a new one, kept as `self.registry`: give it to `render()`.
    """

    def __init__(self, *, service: str, version: str, runner: str | None = None, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for entry in CATALOGUE:
            self._register(entry)
        self._service = (service, version, service if runner is None else runner)
        self._last_request = self.gauge("bentoml_service_last_request_timestamp_seconds").labels(*self._service)
        self._in_progress: dict[str, Gauge] = {}
        self._finished: dict[tuple[str, int], tuple[Counter, _BatchHistogram]] = {}
        self._models: dict[str, ModelMetrics] = {}

    def _register(self, entry: Entry) -> None:
        if entry.kind == "counter":
            self._counters[entry.name] = Counter(entry.name, entry.meaning, entry.labels, registry=self.registry)
        elif entry.kind == "gauge":
            assert entry.mode is not None
            self._gauges[entry.name] = Gauge(entry.name, entry.meaning, entry.labels, registry=self.registry, multiprocess_mode=entry.mode)
        else:
            self._histograms[entry.name] = Histogram(entry.name, entry.meaning, entry.labels, registry=self.registry, buckets=entry.buckets)

    def counter(self, name: str) -> Counter:
        """The counter of that name in the catalogue."""
        return self._counters[name]

    def gauge(self, name: str) -> Gauge:
        """The gauge of that name in the catalogue."""
        return self._gauges[name]

    def histogram(self, name: str) -> Histogram:
        """The histogram of that name in the catalogue."""
        return self._histograms[name]

    def for_model(self, model: str) -> ModelMetrics:
        """That model's counters, bound; the same object every time. Call it only with names of loaded packages."""
        if model not in self._models:
            self._models[model] = ModelMetrics(self, model)
        return self._models[model]

    def expect(self, endpoint: str) -> None:
        """Let that endpoint's answers stand at 0: a first one that appears at 1 is an increase no rate() can see."""
        for status in _ANSWERS:
            self.counter("bentoml_service_request_total").labels(endpoint, *self._service, str(status))

    def request_started(self, endpoint: str) -> None:
        """An HTTP request came in; `endpoint` is its route template or UNMATCHED."""
        if endpoint not in PROBES:
            self._last_request.set(time.time())
        in_progress = self._in_progress.get(endpoint)
        if in_progress is None:
            in_progress = self._in_progress[endpoint] = self.gauge("bentoml_service_request_in_progress").labels(endpoint, *self._service)
        in_progress.inc()

    def request_finished(self, endpoint: str, status: int, seconds: float) -> None:
        """The request that `request_started` announced was answered with that status, or its caller left."""
        if (in_progress := self._in_progress.get(endpoint)) is not None:
            in_progress.dec()
        self._count(endpoint, status, seconds)

    def request_refused(self, endpoint: str, status: int, seconds: float, times: int = 1) -> None:
        """An HTTP request came in and was refused in the same moment; or so many were, and are counted as having taken as long."""
        self._last_request.set(time.time())
        self._count(endpoint, status, seconds, times)

    def _count(self, endpoint: str, status: int, seconds: float, times: int = 1) -> None:
        bound = self._finished.get((endpoint, status))
        if bound is None:
            labels = (endpoint, *self._service, str(status))
            bound = self._finished[endpoint, status] = (
                self.counter("bentoml_service_request_total").labels(*labels),
                _BatchHistogram(self.histogram("bentoml_service_request_duration_seconds").labels(*labels)),
            )
        bound[0].inc(times)
        bound[1].observe(seconds, times)

    def refused(self, model: str, reason: str) -> None:
        """A request for that model was refused; `reason` is an error code (queue_full, deadline_exceeded, shutting_down)."""
        self._known(model).refused(reason)

    def decode_error(self, model: str, reason: str) -> None:
        """A request's input for that model was unusable; `reason` is an error code (invalid_image, image_too_large, ...)."""
        self._known(model).decode_error(reason)

    def _known(self, model: str) -> ModelMetrics:
        return self._models.get(model) or self.for_model(UNKNOWN)

    def started(self) -> None:
        """This process is a worker, whether its sessions are here or in another."""
        self.gauge("ortserve_workers").set(1)
        self.gauge("ortserve_start_time_seconds").labels(*self._service[:2]).set(time.time())
        self.counter("ortserve_worker_starts_total").inc()

    def describe(
        self, *, model: str, version: str, task: str, precision: str, sha256: str, provider: str, onnxruntime_version: str
    ) -> None:
        """State the facts of a loaded model; `provider` is the one its session confirmed."""
        self.gauge("ortserve_model_info").labels(model, version, task, precision, sha256, provider, onnxruntime_version).set(1)
        self.gauge("ortserve_provider_active_workers").labels(model, provider).set(1)

    def gpus(self, readings: Iterable[GpuReading]) -> None:
        """Store what `gpu.devices()` read, right before `render()`.

        The worker that is asked for metrics reads for all: the most recent reading is the one shown, so no worker needs to be chosen.
        """
        for reading in readings:
            index = str(reading.index)
            if reading.utilization is not None:
                self.gauge("ortserve_gpu_utilization_ratio").labels(index).set(reading.utilization)
            self.gauge("ortserve_gpu_memory_used_bytes").labels(index).set(reading.memory_used_bytes)
            self.gauge("ortserve_gpu_memory_total_bytes").labels(index).set(reading.memory_total_bytes)

    def collect(self) -> Iterable[Metric]:
        """Every family of samples, of all workers. Blocks as `render()` does."""
        return collect(self.registry)

    def scrape(self, readiness: Readiness) -> tuple[bytes, str]:
        """The exposition text and its content type; what `/readyz` would say and the GPUs are read afresh. Blocks as `render()` does."""
        ready, expected = readiness.count()
        self.gauge("ortserve_ready_workers").set(ready)
        self.gauge("ortserve_expected_workers").set(expected)
        self.gpus(gpu.devices())
        return render(self.registry)


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            family.samples = [sample for sample in family.samples if sample.name != f"{family.name}_created"]
            if family.type == "histogram":
                family.samples.sort(key=_exposition_order)
            yield family


def _exposition_order(sample: Sample) -> tuple[tuple[tuple[str, str], ...], int, float]:
    """Label set by label set: buckets rising, then count, then sum; the order BentoML's PrometheusClient gives."""
    labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
    part = 0 if sample.name.endswith("_bucket") else 1 if sample.name.endswith("_count") else 2
    return labels, part, float(sample.labels["le"]) if part == 0 else 0.0


def collect(registry: CollectorRegistry | None = None) -> Iterable[Metric]:
    """What `render` shows, as families of samples. Blocks as it does."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return multiprocess.collect(Path(folder)) if folder else (registry or REGISTRY).collect()


def render(registry: CollectorRegistry | None = None) -> tuple[bytes, str]:
    """The exposition text and its content type. Where workers share a folder: of all of them, after sweeping the dead.

    `registry` counts only where there is no such folder (prometheus_client's default registry if not given). Blocks for file
    reading: call it in a worker thread.
    """
    families = collect(registry)
    output = CollectorRegistry()
    output.register(_Collected(families))
    return generate_latest(output), CONTENT_TYPE_PLAIN_0_0_4
