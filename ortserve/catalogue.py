"""The catalogue of every metric: name, type, labels, unit, meaning, and how it adds up over workers.

`docs/METRICS.md` is written from it: `python -m ortserve.catalogue > docs/METRICS.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# BentoML's DEFAULT_BUCKET (bentoml/_internal/utils/metrics.py); prometheus_client adds +Inf.
_BENTOML_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 180.0)
# Steps of a third to two thirds up to three seconds: a quantile is read as well at 1 ms as at 100 ms.
_SECONDS = (
    *(0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0),
)
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)

_HTTP = ("endpoint", "service_name", "service_version", "runner_name")
_INFO = ("model", "version", "task", "precision", "sha256", "provider", "onnxruntime_version")

Mode = Literal["livesum", "livemax", "livemostrecent", "max", "min"]


@dataclass(frozen=True)
class Entry:
    """One metric as users see it. `mode` says how a gauge adds up over workers; the `live` modes forget the dead."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    unit: str
    meaning: str
    mode: Mode | None = None
    buckets: tuple[float, ...] = ()


CATALOGUE: tuple[Entry, ...] = (
    Entry(
        "bentoml_service_request_duration_seconds",
        "histogram",
        (*_HTTP, "http_response_code"),
        "seconds",
        "HTTP request, from its first byte read to its last byte sent.",
        buckets=_BENTOML_SECONDS,
    ),
    Entry("bentoml_service_request_total", "counter", (*_HTTP, "http_response_code"), "requests", "HTTP requests answered."),
    Entry("bentoml_service_request_in_progress", "gauge", _HTTP, "requests", "HTTP requests being answered now.", "livesum"),
    Entry(
        "bentoml_service_last_request_timestamp_seconds",
        "gauge",
        ("service_name", "service_version", "runner_name"),
        "seconds since 1970",
        "When the latest request that is no probe came in.",
        "max",
    ),
    Entry(
        "ortserve_request_duration_seconds",
        "histogram",
        ("model",),
        "seconds",
        "A request that was answered: from its arrival until its answer was ready.",
        buckets=_SECONDS,
    ),
    Entry("ortserve_decode_duration_seconds", "histogram", ("model",), "seconds", "Bytes to pixels, per request.", buckets=_SECONDS),
    Entry(
        "ortserve_queue_duration_seconds",
        "histogram",
        ("model",),
        "seconds",
        "Waiting in the batcher's queue, per request in a started batch.",
        buckets=_SECONDS,
    ),
    Entry(
        "ortserve_inference_duration_seconds", "histogram", ("model",), "seconds", "One run of the session, per batch.", buckets=_SECONDS
    ),
    Entry(
        "ortserve_p99_target_seconds",
        "gauge",
        ("model",),
        "seconds",
        "What the profile wants 99 of 100 answers to be ready within (objectives.p99_ms).",
        "livemax",
    ),
    Entry("ortserve_batch_size_rows", "histogram", ("model",), "rows", "Rows in a batch when it starts.", buckets=_ROWS),
    Entry("ortserve_batch_limit_rows", "gauge", ("model",), "rows", "The most rows a batch may have.", "livemax"),
    Entry("ortserve_tokens_total", "counter", ("model",), "tokens", "Tokens of texts that went to the session, padding not among them."),
    Entry(
        "ortserve_padding_tokens_total",
        "counter",
        ("model",),
        "tokens",
        "Computed for nothing: what texts of a batch were padded with to be of one length.",
    ),
    Entry("ortserve_batches_in_flight", "gauge", ("model",), "batches", "Batches in the session now.", "livesum"),
    Entry("ortserve_batch_slots", "gauge", ("model",), "batches", "Batches that may be in the session at once.", "livesum"),
    Entry("ortserve_queue_size_rows", "gauge", ("model",), "rows", "Rows waiting in the queue now.", "livesum"),
    Entry("ortserve_queue_capacity_rows", "gauge", ("model",), "rows", "Rows the queue holds; a request beyond is refused.", "livesum"),
    Entry(
        "ortserve_refusals_total", "counter", ("model", "reason"), "requests", "Requests refused for the service's state, by error code."
    ),
    Entry("ortserve_decode_errors_total", "counter", ("model", "reason"), "requests", "Requests whose input was unusable, by error code."),
    Entry("ortserve_model_info", "gauge", _INFO, "1", "Facts of a loaded model; the value is always 1.", "livemax"),
    Entry(
        "ortserve_provider_active_workers",
        "gauge",
        ("model", "provider"),
        "workers",
        "Living workers whose session confirmed that it runs on this provider.",
        "livesum",
    ),
    Entry(
        "ortserve_provider_fallback_workers",
        "gauge",
        ("model", "wanted"),
        "workers",
        "Living workers that run on another provider than `wanted`: the first of the profile that this build of ONNX Runtime has.",
        "livesum",
    ),
    Entry(
        "ortserve_workers",
        "gauge",
        (),
        "workers",
        "Living workers that serve their model, the runner among them. Fewer than expected: one died and was not replaced.",
        "livesum",
    ),
    Entry("ortserve_ready_workers", "gauge", (), "workers", "Warm and living workers, as `/readyz` counts them.", "livemostrecent"),
    Entry(
        "ortserve_expected_workers", "gauge", (), "workers", "Workers that the profile asks for, the runner among them.", "livemostrecent"
    ),
    Entry(
        "ortserve_worker_starts_total",
        "counter",
        (),
        "workers",
        "Workers started since the service started. More than the profile's: some were replaced.",
    ),
    Entry(
        "ortserve_start_time_seconds",
        "gauge",
        ("service_name", "service_version"),
        "seconds since 1970",
        "When the service's first worker started.",
        "min",
    ),
    Entry(
        "ortserve_gpu_utilization_ratio",
        "gauge",
        ("gpu",),
        "ratio, 0 to 1",
        "Time the GPU was busy, of NVML's last sample.",
        "livemostrecent",
    ),
    Entry("ortserve_gpu_memory_used_bytes", "gauge", ("gpu",), "bytes", "Memory of the GPU in use, by any process.", "livemostrecent"),
    Entry("ortserve_gpu_memory_total_bytes", "gauge", ("gpu",), "bytes", "Memory of the GPU.", "livemostrecent"),
)


def document() -> str:
    """The text of docs/METRICS.md: one row for every metric of the catalogue."""
    rows = [
        f"| `{entry.name}` | {entry.kind} | {', '.join(f'`{label}`' for label in entry.labels) or '-'} | {entry.unit} "
        f"| {entry.meaning}{_OVER_WORKERS[entry.mode]} |"
        for entry in CATALOGUE
    ]
    return "\n".join([_HEAD, "| Name | Type | Labels | Unit | Meaning |", "|---|---|---|---|---|", *rows, ""])


_OVER_WORKERS: dict[Mode | None, str] = {
    None: "",
    "livesum": " Sum over living workers.",
    "livemax": " The highest of living workers, not summed.",
    "livemostrecent": " Read by one process for all, not summed.",
    "max": " The latest over all workers.",
    "min": " The earliest over all workers, dead ones included.",
}

_HEAD = """# Metrics

Written by `python -m ortserve.catalogue > docs/METRICS.md`; a test compares. `GET /metrics` shows all workers of a service as one.

- It stands on the service's port, or, with `metrics.port` in the profile, alone on that one: answered by the parent process, whatever
  becomes of the workers.
- Counters and histograms of a worker that died stay in the sum; gauges of a worker that died vanish.
- `endpoint` is a route template, or `unmatched` for any other path. `model` is the name of a loaded package. `reason` is an
  error code of the answer's `error.code`, or `unknown`. No caller can make a new series.
"""

if __name__ == "__main__":
    print(document(), end="")
