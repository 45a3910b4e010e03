"""int8 is fast where it can be: no convolution stays in fp32, not even behind a residual block, and the normalisation does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from ortserve.export.graph import preparing_nodes
from ortserve.export.int8 import to_int8

SIDE = 8
RANDOM = np.random.default_rng(5)
PIXELS = RANDOM.integers(0, 256, (4, SIDE, SIDE, 3), dtype=np.uint8)
# A residual block whose sum two nodes read, and a batch size asked of the pixels as PyTorch's exporter does for resnet50's mean.
NET = """
<ir_version: 10, opset_import: ["" : 18]>
net (uint8[batch,8,8,3] pixels) => (float[batch,4] logits, int64[1] rows) {
  rows = Shape <start = 0, end = 1> (pixels)
  f = Cast <to = 1> (pixels)
  t = Transpose <perm = [0, 3, 1, 2]> (f)
  m = Mul (t, scale)
  a = Add (m, bias)
  c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a, w0)
  r0 = Relu (c0)
  c1 = Conv <kernel_shape = [1, 1]> (r0, w1)
  s1 = Add (c1, r0)
  r1 = Relu (s1)
  c2 = Conv <kernel_shape = [1, 1]> (r1, w2)
  s2 = Add (c2, r1)
  r2 = Relu (s2)
  p = ReduceMean <keepdims = 0> (r2, axes)
  logits = Gemm (p, g)
}
"""
PREPARING = 4


def unheard(done: int, total: int) -> None:
    """Of the progress."""
    del done, total


@pytest.fixture
def net() -> onnx.ModelProto:
    model = parser.parse_model(NET)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    values = {
        "scale": np.full((1, 3, 1, 1), 1 / 64, np.float32),
        "bias": np.float32([-2, -1.5, -1]).reshape(1, 3, 1, 1),
        "w0": RANDOM.normal(0, 0.3, (16, 3, 3, 3)),
        "w1": RANDOM.normal(0, 0.3, (16, 16, 1, 1)),
        "w2": RANDOM.normal(0, 0.3, (16, 16, 1, 1)),
        "g": RANDOM.normal(0, 0.5, (16, 4)),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items())
    model.graph.initializer.append(numpy_helper.from_array(np.int64([2, 3]), "axes"))
    return model


def test_every_convolution_and_sum_of_a_residual_net_runs_in_int8(net: onnx.ModelProto, tmp_path: Path) -> None:
    path, optimised = tmp_path / "int8.onnx", tmp_path / "optimised.onnx"
    to_int8(net, {"pixels": PIXELS}, path, unheard)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3  # it warns that such a file is for this machine alone
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["QGemm"]) == (3, 2, 1)
    assert operators["Conv"] == 0
    assert (operators["Mul"], operators["Add"]) == (1, 1)  # the normalisation's


def test_weights_have_seven_bits_so_that_the_quick_kernels_of_any_cpu_are_exact(net: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    to_int8(net, {"pixels": PIXELS}, path, unheard)
    weights = [numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer if item.data_type == onnx.TensorProto.INT8]
    largest = [int(np.abs(array.astype(np.int16)).max()) for array in weights if array.ndim > 1]
    assert len(largest) == 4  # three convolutions and the linear layer
    assert max(largest) in (63, 64)

    def logits(precise: str) -> np.ndarray:
        options = ort.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", precise)
        return np.asarray(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(["logits"], {"pixels": PIXELS})[0])

    np.testing.assert_array_equal(logits("0"), logits("1"))


def test_the_normalisation_stays_fp32_although_the_batch_size_is_asked_of_the_pixels(net: onnx.ModelProto, tmp_path: Path) -> None:
    assert preparing_nodes(net) == [node.name for node in net.graph.node[1 : 1 + PREPARING]]
    before = {item.name: numpy_helper.to_array(item) for item in net.graph.initializer}
    to_int8(net, {"pixels": PIXELS}, tmp_path / "int8.onnx", unheard)
    assert {item.name: tuple(item.dims) for item in net.graph.initializer} == {name: value.shape for name, value in before.items()}
    after = {item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    for name in ("scale", "bias"):  # repeated along the width, and nothing else
        np.testing.assert_array_equal(after[name], np.broadcast_to(before[name], (1, 3, 1, SIDE)))
