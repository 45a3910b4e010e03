"""Triton's statistics, made from the counters that `/metrics` shows, of all workers together. Nothing is counted a second time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from ortserve.model import ServedModel

# Triton's name of a duration, and the histogram that has it. There is none of `compute_output`: to cut an answer apart copies nothing.
_DURATIONS = {
    "success": "ortserve_request_duration_seconds",
    "queue": "ortserve_queue_duration_seconds",
    "compute_input": "ortserve_decode_duration_seconds",
    "compute_infer": "ortserve_inference_duration_seconds",
}
_NEVER = ("compute_output", "cache_hit", "cache_miss")  # not measured, and no cache
_FAILURES = ("ortserve_refusals_total", "ortserve_decode_errors_total")
_ROWS = "ortserve_batch_size_rows"


def statistics(families: Iterable[Metric], models: Sequence[ServedModel]) -> dict[str, Any]:
    """`$stats_model_response` of those models. A time is the sum of a histogram; a failure is counted without one."""
    found = {served.name: _Samples() for served in models}
    for family in families:
        for sample in family.samples:
            if (of_model := found.get(sample.labels.get("model", ""))) is not None:
                of_model.add(sample.name, sample.labels, sample.value)
    return {"model_stats": [_model(served, found[served.name]) for served in models]}


class _Samples:
    """One model's samples: sums by name, and the buckets of the rows of a batch."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._buckets: dict[float, float] = {}

    def add(self, name: str, labels: dict[str, str], value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        if name == f"{_ROWS}_bucket":
            self._buckets[float(labels["le"])] = value

    def count(self, name: str) -> int:
        return int(self._sums.get(name, 0.0))

    def duration(self, histogram: str) -> dict[str, int]:
        return {"count": self.count(f"{histogram}_count"), "ns": round(self._sums.get(f"{histogram}_sum", 0.0) * 1e9)}

    def batches(self) -> list[tuple[int, int]]:
        """(the bucket's bound, batches of so many rows or fewer and of more than the bound before), where there were any."""
        below, batches = 0.0, []
        for bound, total in sorted(self._buckets.items()):
            if total > below and bound < float("inf"):
                batches.append((int(bound), int(total - below)))
            below = total
        return batches


def _model(served: ServedModel, samples: _Samples) -> dict[str, Any]:
    never = {"count": 0, "ns": 0}
    return {
        "name": served.name,
        "version": served.version,
        "last_inference": 0,  # not kept for each model
        "inference_count": samples.count(f"{_ROWS}_sum"),
        "execution_count": samples.count(f"{_ROWS}_count"),
        "inference_stats": {
            "fail": {"count": sum(samples.count(name) for name in _FAILURES), "ns": 0},
            **{name: samples.duration(histogram) for name, histogram in _DURATIONS.items()},
            **dict.fromkeys(_NEVER, never),
        },
        "batch_stats": [
            {"batch_size": size, "compute_input": never, "compute_infer": {"count": count, "ns": 0}, "compute_output": never}
            for size, count in samples.batches()
        ],
        "memory_usage": [],
    }
