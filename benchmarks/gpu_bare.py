"""The limit on a GPU: a session in a process of its own, on pixels that are ready, with and without binding, graphs and a second lane.

`python -m benchmarks.gpu_bare PACKAGE_FOLDER PRECISION SECONDS` prints JSON: rows per second and median milliseconds of each set-up.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.callers import hammer
from ortserve import gpu, providers
from ortserve.execution import Execution
from ortserve.manifest import Manifest
from ortserve.session import Session

PROVIDER = "CUDAExecutionProvider"
BATCHES = (1, 8, 32, 64)


def setups() -> Iterator[dict[str, Any]]:
    """What is varied: everything at once would be 200 runs, so one thing at a time around the shipped set-up."""
    shipped = {"algo": "HEURISTIC", "nhwc": 0, "graphs": True, "lanes": 2, "binding": True}
    for batch in BATCHES:
        yield {**shipped, "batch": batch}
        yield {**shipped, "batch": batch, "lanes": 1}
        yield {**shipped, "batch": batch, "graphs": False}
        yield {**shipped, "batch": batch, "graphs": False, "lanes": 1}
        yield {**shipped, "batch": batch, "graphs": False, "binding": False}
        yield {**shipped, "batch": batch, "algo": "EXHAUSTIVE"}
        yield {**shipped, "batch": batch, "nhwc": 1}
        yield {**shipped, "batch": batch, "nhwc": 1, "algo": "EXHAUSTIVE"}


def measure(folder: Path, precision: str, seconds: float) -> list[dict[str, Any]]:
    """Each set-up with its figures, or with the error that it ended with: one that a model cannot have does not end the rest."""
    manifest = Manifest.read(folder)
    path = manifest.verified_path(folder, precision)  # type: ignore[arg-type]
    results = []
    for setup in setups():
        if setup["batch"] > manifest.max_batch:
            continue
        try:
            results.append(setup | _measure(path, setup, seconds))
        except Exception as error:
            results.append(setup | {"error": " ".join(str(error).split())})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def execution(setup: dict[str, Any]) -> Execution:
    """The execution of one set-up."""
    batch = setup["batch"]
    return Execution.model_validate(
        {
            "provider": PROVIDER,
            "provider_options": {"cudnn_conv_algo_search": setup["algo"], "prefer_nhwc": setup["nhwc"]},
            "cuda_graphs": "required" if setup["graphs"] else "off",
            "batching": {"max_batch_size": batch, "buckets": [batch], "max_in_flight": setup["lanes"]},
        }
    )


def _measure(path: Path, setup: dict[str, Any], seconds: float) -> dict[str, Any]:
    batch, lanes = setup["batch"], setup["lanes"]
    wanted = execution(setup)
    began = time.perf_counter()
    if setup["binding"]:
        session = Session.open(path, wanted)
        session.warm_up([batch])
        spec, run = session.inputs[0], session.run
    else:
        providers.prepare(PROVIDER)
        options = providers.session_options(wanted)
        plain = ort.InferenceSession(str(path), options, providers=providers.providers(wanted), enable_fallback=0)
        if plain.get_providers()[0] != PROVIDER:
            raise RuntimeError(f"expected a session on {PROVIDER}, got one on {plain.get_providers()[0]}")
        spec, run = Session(plain, Execution(provider=PROVIDER), None).inputs[0], lambda inputs: plain.run(None, inputs)
    pixels = np.random.default_rng(0).integers(0, 256, spec.concrete(batch), dtype=np.uint8)
    for _ in range(5):
        run({spec.name: pixels})
    ready_s = time.perf_counter() - began
    rate, median_ms = hammer(lambda: run({spec.name: pixels}), lanes, seconds)
    used = gpu.devices()
    memory = {"gpu_memory_bytes": used[0].memory_used_bytes} if used else {}
    return {"rows_per_s": rate * batch, "p50_ms": median_ms, "ready_s": ready_s, **memory}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))))
