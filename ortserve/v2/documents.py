"""What a server and a model say of themselves: metadata, configuration, index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ortserve.execution import GPU_PROVIDERS
from ortserve.manifest import TensorSpec
from ortserve.v2.datatypes import datatype
from ortserve.v2.inference import outputs_of

if TYPE_CHECKING:
    from ortserve.model import ServedModel

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters", "statistics")
_PLATFORM = "onnxruntime_onnx"  # Triton's word for what runs here


def server(version: str) -> dict[str, Any]:
    """Of the server."""
    return {"name": "ortserve", "version": version, "extensions": list(EXTENSIONS)}


def metadata(served: ServedModel) -> dict[str, Any]:
    """Of a model. -1 is a free dimension; the first is the rows of the request."""
    return {
        "name": served.name,
        "versions": [served.version],
        "platform": _PLATFORM,
        "inputs": [_tensor(spec) for spec in served.manifest.inputs],
        "outputs": [_tensor(spec) for spec in outputs_of(served)],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": [-1, *_dims(spec)]}


def _dims(spec: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in spec.shape[1:]]


def configuration(served: ServedModel) -> dict[str, Any]:
    """Triton's model configuration, so far as it has words for what runs here. `GET /models/{name}` says all of it."""
    facts = served.engine.facts()
    batching = served.engine.batching
    on_gpu = facts["provider"] in GPU_PROVIDERS
    return {
        "name": served.name,
        "platform": _PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": batching.max_batch_size,
        "input": [_config_tensor(spec) for spec in served.manifest.inputs],
        "output": [_config_tensor(spec) for spec in outputs_of(served)],
        "instance_group": [{"name": served.name, "kind": "KIND_GPU" if on_gpu else "KIND_CPU", "count": batching.max_in_flight}],
        "dynamic_batching": {
            "preferred_batch_size": list(batching.buckets or (batching.max_batch_size,)),
            "max_queue_delay_microseconds": round(batching.max_queue_delay_ms * 1000),
            "default_queue_policy": {"timeout_action": "REJECT", "max_queue_size": batching.max_queue_size},
        },
        "parameters": {key: {"string_value": str(facts[key])} for key in ("provider", "precision", "sha256")},
    }


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{datatype(spec.dtype)}", "dims": _dims(spec)}


def index(models: Mapping[str, ServedModel], *, ready: bool, only_ready: bool) -> list[dict[str, str]]:
    """Every model of the service, or those that answer now; `ready` says whether the service does."""
    listed = [(served, ready and served.engine.available) for served in models.values()]
    return [
        {
            "name": served.name,
            "version": served.version,
            "state": "READY" if there else "UNAVAILABLE",
            "reason": "" if there else "not ready yet",
        }
        for served, there in listed
        if there or not only_ready
    ]
