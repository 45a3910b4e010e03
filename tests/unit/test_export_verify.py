"""The parity gate: it passes the true graph and fails every mutant, and it says which number failed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ortserve.export.options import Options
from ortserve.export.pictures import as_samples
from ortserve.export.tasks import batches_up_to
from ortserve.export.tasks import classes as task_module
from ortserve.export.tasks.classes import Limits
from ortserve.export.tasks.image_classification import ImageClassification
from ortserve.export.verify import Expected, expect, verify
from ortserve.manifest import ParityReport, Precision, Preprocessing
from ortserve.session import Tensors

SIDE, CLASSES = 8, 6
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
PREPROCESSING = Preprocessing(mode="stretch", height=SIDE, width=SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHT = np.random.default_rng(1).normal(0, 0.1, (SIDE * SIDE * 3, CLASSES)).astype(np.float32)
TASK = ImageClassification(PREPROCESSING, CLASSES)


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass
class Linear:
    """The reference: normalisation, a linear layer and softmax, in double."""

    description: str = "numpy in float64"

    def __call__(self, inputs: Tensors) -> Tensors:
        pixels = inputs["pixels"]
        logits = ((pixels / 255.0 - MEAN) / STD).reshape(len(pixels), -1) @ WEIGHT.astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        return {"logits": logits.astype(np.float32), "probabilities": probabilities.astype(np.float32)}


def write(path: Path, *, swapped: bool = False, normalised: bool = True, constant: bool = False, nan: bool = False) -> Path:
    """The graph of `Linear`, or one of its mutants."""
    weight = WEIGHT.reshape(SIDE * SIDE, 3, CLASSES)[:, ::-1] if swapped else WEIGHT
    scale, bias = (1 / (255 * STD), -MEAN / STD) if normalised else (np.float32([1 / 255] * 3), np.float32([0] * 3))
    if nan:
        scale = scale * np.float32("nan")
    gain = np.zeros_like(WEIGHT) if constant else weight.reshape(-1, CLASSES)
    tensors = {"scale": scale, "bias": bias, "weight": gain, "flat": np.int64([0, -1])}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["normal"]),
        helper.make_node("Reshape", ["normal", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", CLASSES]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def expected(pictures: int = 0) -> Expected:
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (pictures, SIDE, SIDE, 3), dtype=np.uint8)
    given = as_samples(pixels, pixels, f"{pictures} pictures") if pictures else None
    return expect(TASK, Linear(), 9, given, silent)


def gate(path: Path, want: Expected, precision: Precision = "fp32") -> ParityReport:
    return verify(path, TASK, want, precision, Options(source="x"), silent)


def test_true_graph_passes_at_every_batch_on_noise_black_and_white(tmp_path: Path) -> None:
    report = gate(write(tmp_path / "true.onnx"), expected())
    assert report.passed, report.failures
    assert [(check.inputs, check.batch) for check in report.checks] == [
        ("noise", 1), ("noise", 2), ("noise", 7), ("noise", 9), ("black", 1), ("white", 1),
    ]  # fmt: skip
    assert report.provider == "CPUExecutionProvider"
    assert max(check.outputs["logits"].max_abs for check in report.checks) < 1e-5  # float32 rounding against float64


@pytest.mark.parametrize(
    ("mutation", "number"),
    [("swapped", "logits"), ("swapped", "probabilities"), ("constant", "logits"), ("constant", "probabilities")],
)
def test_mutant_fails_and_the_failing_number_is_named(tmp_path: Path, mutation: str, number: str) -> None:
    report = gate(write(tmp_path / "mutant.onnx", **{mutation: True}), expected())
    assert not report.passed
    assert any(line.startswith(f"{number}: max-abs") and "noise, batch 7" in line for line in report.failures)


def test_missing_normalisation_fails(tmp_path: Path) -> None:
    report = gate(write(tmp_path / "mutant.onnx", normalised=False), expected())
    assert not report.passed
    assert any("black" in line for line in report.failures)
    assert any("noise" in line for line in report.failures)


@pytest.mark.parametrize("mutation", ["swapped", "constant"])
def test_mutant_fails_agreement_even_where_int8_limits_are_wide(tmp_path: Path, mutation: str) -> None:
    report = gate(write(tmp_path / "mutant.onnx", **{mutation: True}), expected(400), "int8")
    assert report.agreement.value is not None
    assert report.agreement.value < 0.9
    assert any(line.startswith("top-1 agreement") for line in report.failures)


def test_nan_always_fails_whatever_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(task_module._LIMITS, "int8", Limits(1e9, 1e9, 1e9, 1e9, 0.0))
    report = gate(write(tmp_path / "nan.onnx", nan=True), expected(400), "int8")
    assert not report.passed
    assert all("NaN or Inf" in line for line in report.failures)


def test_agreement_on_too_few_pictures_is_not_measurable(tmp_path: Path) -> None:
    path = write(tmp_path / "true.onnx")
    report = gate(path, expected(199))
    assert report.agreement.value is None
    assert report.passed
    assert not gate(path, expected(199), "int8").passed
    assert gate(path, expected(200), "int8").agreement.value == 1.0


def test_agreement_on_one_class_is_not_measurable(tmp_path: Path) -> None:
    one_class = np.eye(CLASSES, dtype=np.float32)[np.zeros(300, np.intp)]
    want = replace(expected(300), unmeasurable=TASK.unmeasurable({"probabilities": one_class}))
    report = gate(write(tmp_path / "true.onnx"), want, "int8")
    assert report.agreement.value is None
    assert "300 pictures in 1 classes" in report.failures[-1]


@pytest.mark.parametrize(("largest", "batches"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (7, (1, 2, 7)), (32, (1, 2, 7, 32))])
def test_checked_batches_never_exceed_the_maximum(largest: int, batches: tuple[int, ...]) -> None:
    assert batches_up_to(largest) == batches
