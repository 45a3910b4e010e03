"""What single steps of making and opening a graph gain, in process: for `make bench-techniques`.

`python -m benchmarks.graphs SOURCE WEIGHTS FILE.onnx` writes the graph that a build has before it simplifies it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import typer

from benchmarks import measure
from benchmarks.callers import hammer
from benchmarks.places import WORK
from ortserve.cpus import available_cpus
from tests.serving import ROOT

SLEEPING = {"session.intra_op.allow_spinning": "0"}


def unsimplified() -> Path:
    """resnet50 as PyTorch exports it, before onnxsim; made once for each set of weights, in a process of its own: torch takes memory."""
    weights = measure.model_of("resnet50").weights
    path = WORK / "techniques" / f"resnet50-{weights.stat().st_size}-{int(weights.stat().st_mtime)}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        subprocess.run([sys.executable, "-m", "benchmarks.graphs", "resnet50", str(weights), str(unfinished)], cwd=ROOT, check=True)
        unfinished.rename(path)
    return path


def gains(seconds: float) -> dict[str, float]:
    """Rates with over rates without, each pair measured one after the other; and the milliseconds of normalising."""
    plain, made, near_empty = unsimplified(), measure.model_of("resnet50").onnx, measure.model_of("near_empty").onnx
    all_of_it = rate(made, seconds)
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    mean, std = (np.array(three, np.float32) for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    times = []
    for _ in range(100):
        started = time.perf_counter()
        np.ascontiguousarray(((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)[np.newaxis])
        times.append(time.perf_counter() - started)
    return {
        "fusions": all_of_it / rate(made, seconds, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
        "onnxsim": all_of_it / rate(plain, seconds),
        "onnxsim_alone": rate(made, seconds, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
        / rate(plain, seconds, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
        "prepacking": all_of_it / rate(made, seconds, entries={"session.disable_prepacking": "1"}),
        "numpy_ms": float(np.median(times)) * 1000,
        "in_graph_ms": 1000 / rate(near_empty, seconds),
    }


def rate(
    path: Path,
    seconds: float,
    *,
    level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    entries: dict[str, str] | None = None,
) -> float:
    """Pictures per second of a session, one after the other, with every CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.graph_optimization_level = level
    for key, value in (SLEEPING | (entries or {})).items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    spec = session.get_inputs()[0]
    inputs = {spec.name: np.random.default_rng(0).integers(0, 256, (1, *spec.shape[1:]), dtype=np.uint8)}
    session.run(None, inputs)
    return hammer(lambda: session.run(None, inputs), 1, seconds)[0]


def main(source: str, weights: Path, path: Path) -> None:
    """Export, and leave it at that."""
    # Imported here: torch takes seconds, and those who only measure graphs should not wait for it.
    from ortserve.export import fp16
    from ortserve.export import source as sources
    from ortserve.export.options import Options

    loaded = sources.load(Options(source=source, weights=str(weights)), lambda *_: None)
    fp16.save(loaded.graph(None), path)


if __name__ == "__main__":
    typer.run(main)
