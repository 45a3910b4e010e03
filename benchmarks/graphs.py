"""What single steps of making and opening a graph gain, in process: for `make bench-techniques`.

`python -m benchmarks.graphs SOURCE WEIGHTS FILE.onnx` writes the graph that a build has before it simplifies it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import typer

from benchmarks import measure
from benchmarks.callers import hammer
from benchmarks.places import WORK
from ortserve.cpus import available_cpus
from tests.serving import ROOT

TURNS = 4  # of all ways, within the seconds of each
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
    """Rates with over rates without, all measured by turns; and the milliseconds of normalising."""
    made, plain, none = measure.model_of("resnet50").onnx, unsimplified(), ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    ways = {
        "all": opened(made),
        "no fusions": opened(made, level=none),
        "no onnxsim": opened(plain),
        "neither": opened(plain, level=none),
        "no prepacking": opened(made, entries={"session.disable_prepacking": "1"}),
    }
    rates = dict.fromkeys(ways, 0.0)
    for _ in range(TURNS):
        for way, run in ways.items():
            rates[way] += hammer(run, 1, seconds / TURNS)[0] / TURNS
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    mean, std = (np.array(three, np.float32) for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    numpy = hammer(lambda: np.ascontiguousarray(((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)), 1, seconds / TURNS)
    return {
        "fusions": rates["all"] / rates["no fusions"],
        "onnxsim": rates["all"] / rates["no onnxsim"],
        "onnxsim_alone": rates["no fusions"] / rates["neither"],
        "prepacking": rates["all"] / rates["no prepacking"],
        "numpy_ms": numpy[1],
        "in_graph_ms": hammer(opened(measure.model_of("near_empty").onnx), 1, seconds / TURNS)[1],
    }


def opened(
    path: Path, *, level: ort.GraphOptimizationLevel = ort.GraphOptimizationLevel.ORT_ENABLE_ALL, entries: Mapping[str, str] | None = None
) -> Callable[[], Any]:
    """What runs one picture in a session of the graph, with every CPU; it has run once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    options.graph_optimization_level = level
    for key, value in {**SLEEPING, **(entries or {})}.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    spec = session.get_inputs()[0]
    inputs = {spec.name: np.random.default_rng(0).integers(0, 256, (1, *spec.shape[1:]), dtype=np.uint8)}
    session.run(None, inputs)
    return partial(session.run, None, inputs)


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
