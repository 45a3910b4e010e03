"""fp16 and int8: dtypes outside stay, few casts inside, nothing overflows, ranges come from the pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ortserve.errors import ExportError
from ortserve.export.fp16 import overflowing_nodes, to_fp16
from ortserve.export.int8 import to_int8

RANDOM = np.random.default_rng(2)
PIXELS = RANDOM.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)


def conv_net(*, gain: float = 1.0) -> onnx.ModelProto:
    """pixels -> normalise -> conv -> relu -> mean -> gemm -> softmax, as the exporter writes it. `gain` scales the first weights."""
    tensors = {
        "scale": np.full((1, 3, 1, 1), 1 / 64, np.float32),
        "bias": np.full((1, 3, 1, 1), -2, np.float32),
        "w": (RANDOM.normal(0, 0.3, (16, 3, 3, 3)) * gain).astype(np.float32),
        "axes": np.int64([2, 3]),
        "g": (RANDOM.normal(0, 0.5, (16, 4)) / gain).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["t", "scale"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r", "axes"], ["p"], keepdims=0),
        helper.make_node("Gemm", ["p", "g"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: list[np.ndarray] = session.run(["logits", "probabilities"], {"pixels": PIXELS})
    return answers


def types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {value.name: value.type.tensor_type.elem_type for value in [*inferred.graph.value_info, *inferred.graph.output]}


def test_fp16_keeps_the_interface_and_casts_only_where_precision_changes() -> None:
    model = conv_net()
    half = to_fp16(model, [{"pixels": PIXELS}])
    onnx.checker.check_model(half, full_check=True)
    assert [value.type.tensor_type.elem_type for value in half.graph.input] == [TensorProto.UINT8]
    assert [value.type.tensor_type.elem_type for value in half.graph.output] == [TensorProto.FLOAT] * 2
    assert [value.name for value in half.graph.output] == ["logits", "probabilities"]
    # pixels -> fp32, into the convolution, out of it for the mean, into the Gemm, out of it for logits and softmax
    assert Counter(node.op_type for node in half.graph.node)["Cast"] == 5
    of = {node.op_type: types(half)[node.output[0]] for node in half.graph.node if node.op_type != "Cast"}
    assert of == {
        "Transpose": 1, "Mul": 1, "Add": 1, "Conv": 10, "Relu": 10, "ReduceMean": 1, "Gemm": 10, "Softmax": 1,
    }  # fmt: skip
    for have, want in zip(run(half), run(model), strict=True):
        assert have.dtype == np.float32
        np.testing.assert_allclose(have, want, atol=5e-3 * np.ptp(want))  # fp16 has 11 bits


def test_fp16_halves_the_weights() -> None:
    kinds = {item.name: item.data_type for item in to_fp16(conv_net(), [{"pixels": PIXELS}]).graph.initializer}
    assert kinds["w"] == kinds["g"] == TensorProto.FLOAT16
    assert kinds["scale"] == kinds["bias"] == TensorProto.FLOAT


def test_nodes_that_would_overflow_stay_fp32() -> None:
    model = conv_net(gain=1e5)  # activations of some hundred thousand: beyond fp16's 65504
    half = to_fp16(model, [{"pixels": PIXELS}])
    kinds = types(half)
    assert {node.op_type: kinds[node.output[0]] for node in half.graph.node}["Conv"] == TensorProto.FLOAT
    for have, want in zip(run(half), run(model), strict=True):
        np.testing.assert_allclose(have, want, atol=5e-3 * np.ptp(want))
    assert overflowing_nodes(conv_net(), [{"pixels": PIXELS}]) == []


def test_graph_with_nan_inside_is_refused() -> None:
    model = conv_net()
    weight = next(item for item in model.graph.initializer if item.name == "w")
    weight.CopyFrom(numpy_helper.from_array(np.full((16, 3, 3, 3), np.nan, np.float32), "w"))
    with pytest.raises(ExportError, match="NaN or Inf"):
        to_fp16(model, [{"pixels": PIXELS}])


def test_int8_is_qdq_per_channel_with_the_picture_side_untouched(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    model, path = conv_net(), tmp_path / "int8.onnx"
    to_int8(model, {"pixels": PIXELS}, path, lambda done, total: seen.append((done, total)))
    stored = onnx.load(str(path))
    assert seen == [(4, 8), (8, 8)]
    operators = Counter(node.op_type for node in stored.graph.node)
    assert operators["DequantizeLinear"] > operators["QuantizeLinear"] > 0
    scales = {item.name: numpy_helper.to_array(item).size for item in stored.graph.initializer if item.name.endswith("_scale")}
    assert scales["w_scale"] == 16  # one for each output channel
    between = {name for node in stored.graph.node if node.op_type in ("Mul", "Add", "Transpose") for name in node.input}
    assert not any("Dequantize" in name for name in between)
    for have, want in zip(run(stored), run(model), strict=True):
        np.testing.assert_allclose(have, want, atol=0.05 * max(np.ptp(want), 1.0))
