"""Small model packages and profiles that tests make for themselves: a model that names a picture's colour, as slowly as it is told to."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from bentoml._internal.models.model import Model, ModelContext, ModelStore
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ortserve.manifest import Agreement, Manifest, ParityReport, Precision, Preprocessing, Source, TensorSpec, Variant, sha256_of

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
_SIZE = 8  # pixels of a side
_WIDTH = 256  # of the square matrices that take the time
_OPSET = 18


def picture(colour: str, size: int = _SIZE) -> bytes:
    """A PNG of that one colour."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def add_package(home: Path, tag: str, *, seconds_per_row: float = 0.0, precision: Precision = "fp32", max_batch: int = 32) -> Path:
    """The folder of a new package NAME:VERSION in the store below `home`, which answers red, green or blue.

    `seconds_per_row` is what one row takes on one thread of this machine when it is idle, roughly.
    """
    name = tag.partition(":")[0]
    (home / "models").mkdir(parents=True, exist_ok=True)
    store = ModelStore(home / "models")
    # Not `bentoml.models.create`, which would report to BentoML's makers from the process of the tests.
    model = Model.create(tag, module="ortserve", signatures={}, api_version="v1", context=ModelContext("ortserve", {}))
    folder = Path(model.path)
    file = folder / f"{precision}.onnx"
    onnx.save(_graph(round(seconds_per_row / _product_s()) if seconds_per_row else 0), file)
    agreement = Agreement(measure="top-1 agreement", value=None, limit=0.9, samples=0, passed=True, note="made by a test")
    report = ParityReport(reference="none", provider="none", checks=(), agreement=agreement, passed=True, failures=())
    Manifest(
        name=name,
        task="image-classification",
        inputs=(TensorSpec(name="pixels", dtype="uint8", shape=("batch", _SIZE, _SIZE, 3)),),
        outputs=(TensorSpec(name="probabilities", dtype="float32", shape=("batch", 3)),),
        labels=tuple(COLOURS),
        preprocessing=Preprocessing(mode="stretch", height=_SIZE, width=_SIZE, mean=(0, 0, 0), std=(1, 1, 1)),
        max_batch=max_batch,
        variants={
            precision: Variant(file=file.name, sha256=sha256_of(file), size_bytes=file.stat().st_size, nodes=1, opset=_OPSET, parity=report)
        },
        source=Source(kind="onnx", reference="made by a test", weights="none"),
        versions={},
        created_at="2026-01-01T00:00:00Z",
    ).write(folder)
    model.flush()  # type: ignore[no-untyped-call]
    model.save(store)
    return Path(store.get(tag).path)


def write_profile(path: Path, *, batching: Mapping[str, Any] | None = None, **sections: Any) -> str:
    """A profile for the CPU at `path`, with one thread a session so that a slow model leaves the service a CPU; its path as text."""
    execution = {"provider": "CPUExecutionProvider", "session": {"intra_op_num_threads": 1}, "batching": dict(batching or {})}
    path.write_text(yaml.safe_dump({"description": "made by a test", "execution": [execution], **sections}))
    return str(path)


def _graph(products: int) -> onnx.ModelProto:
    """uint8[N,H,W,3] to softmax of the channels' means, with that many matrix products for each row on the way."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "sides"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
    ]
    scores = "logits"
    initializers = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "sides"),
        numpy_helper.from_array(np.array(10 / 255, np.float32), "scale"),
    ]
    if products:
        # An orthogonal matrix keeps the numbers as large as they are; the tiny factor keeps the work and hides its result.
        matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((_WIDTH, _WIDTH)))[0].astype(np.float32)
        initializers += [
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.array(1e-30, np.float32), "tiny"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "matrix_axes"),
            numpy_helper.from_array(np.array([1], np.int64), "channel"),
        ]
        nodes += [
            helper.make_node("ReduceMean", ["logits", "channel"], ["row"], keepdims=1),
            helper.make_node("Unsqueeze", ["row", "channel"], ["cell"]),
            helper.make_node("Add", ["cell", "matrix"], ["product0"]),  # [N, width, width]: depends on the row, so nothing folds it away
            *(helper.make_node("MatMul", [f"product{step}", "matrix"], [f"product{step + 1}"]) for step in range(products)),
            helper.make_node("ReduceMean", [f"product{products}", "matrix_axes"], ["rest"], keepdims=0),
            helper.make_node("Mul", ["rest", "tiny"], ["nothing"]),
            helper.make_node("Unsqueeze", ["nothing", "channel"], ["nothings"]),
            helper.make_node("Add", ["logits", "nothings"], ["slow_logits"]),
        ]
        scores = "slow_logits"
    nodes.append(helper.make_node("Softmax", [scores], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", _SIZE, _SIZE, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    onnx.checker.check_model(model)
    return model


@cache
def _product_s() -> float:
    """Seconds that one matrix product takes here, on one thread: of CPU time, which whatever runs beside this leaves as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    count = 50
    session = onnxruntime.InferenceSession(_graph(count).SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = np.zeros((1, _SIZE, _SIZE, 3), np.uint8)
    session.run(None, {"pixels": pixels})
    times = []
    for _ in range(3):
        started = time.thread_time()
        session.run(None, {"pixels": pixels})
        times.append(time.thread_time() - started)
    return min(times) / count
