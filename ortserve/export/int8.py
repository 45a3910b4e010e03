"""fp32 to int8 (onnxruntime.quantization), weights per channel: with ranges of activations measured beforehand, or at every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from ortserve.export.chatter import quiet
from ortserve.export.graph import preparing_nodes, with_node_names
from ortserve.export.tasks import cut, rows
from ortserve.session import Tensors

# What is quantised where ranges are taken at every run. On all-MiniLM-L6-v2, two CPUs: MatMul alone gave 1.6 times the rows of fp32,
# with Attention 2.1 times; EmbedLayerNormalization brings no speed, but its table is two thirds of the file (59 MB -> 23).
DYNAMIC_OPERATORS = ("MatMul", "Attention", "EmbedLayerNormalization")
# Rows per calibration run: the calibrator keeps every intermediate tensor of a run in memory.
ROWS = 4


def to_int8(
    graph: onnx.ModelProto, calibration: Tensors, path: Path, advance: Callable[[int, int], None], keep: Iterable[str] = ()
) -> None:
    """Write the quantised graph to `path`, the nodes named in `keep` in fp32. `advance(done, total)` is told of the rows that were run.

    Activations are unsigned, weights signed (U8S8): the one pair that ONNX Runtime has convolution kernels for on x86, and what it makes of
    signed activations there when it opens the file, except where two nodes read one tensor. Those it leaves signed, without a kernel:
    every convolution behind a residual block then ran in fp32, and with VNNI resnet50 was 1.4 times as fast as in fp32, not 3.4 times.

    Weights have seven bits (`reduce_range`): the sum of two products fits into 16 bits then, which is all that x86 without VNNI has for it.
    Of eight bits ONNX Runtime has to multiply such pairs another way there (`session_options`), or they saturate: resnet50 was 1.4 times as
    fast as in fp32, and is 1.9 times. Answers are the same on every CPU. On the trained models of `benchmarks/parity.py` it cost nothing.

    MinMax because it is the simplest and nothing measured speaks against it: on digits and on examples/research Percentile (99.999)
    moved the scales by 4 % at most and no class changed, and Entropy with ONNX Runtime's own defaults (128 bins for 128 steps, so
    nothing to choose) found MinMax's scales exactly. A deep trained network, where outliers may matter, was not measured.
    """
    source = onnx.ModelProto()
    source.CopyFrom(with_node_names(graph))
    preparing = preparing_nodes(source)
    _widen(source, preparing)
    with quiet():
        quantize_static(
            source,
            path,
            _Reader({value.name: calibration[value.name] for value in source.graph.input}, advance),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[*keep, *preparing, *(node.name for node in source.graph.node if node.op_type == "Softmax")],
        )


def to_dynamic_int8(graph: onnx.ModelProto, path: Path) -> None:
    """Write the graph to `path` with int8 weights, its activations quantised at every run by their own range: needs no calibration.

    For transformers, whose activations have outliers that differ from text to text. Weights have seven bits, as in `to_int8`: it cost 0.001
    of Spearman's rho on all-MiniLM-L6-v2. Per tensor instead of per channel would have cost 0.03.
    """
    source = onnx.ModelProto()
    source.CopyFrom(with_node_names(graph))
    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=list(DYNAMIC_OPERATORS),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what comes out of operators that ONNX does not know
        )


def _widen(graph: onnx.ModelProto, preparing: list[str]) -> None:
    """Repeat the normalisation's [1,C,1,1] constants along the width, in place: the same numbers, faster to apply.

    In an int8 graph ONNX Runtime moves the change of layout behind the normalisation, so that channels lie side by side. It then applies
    three numbers for three channels pixel by pixel, and a row of numbers row by row: 0.1 ms of resnet50's 22.5, over 1.2 before.
    """
    width = graph.graph.input[0].type.tensor_type.shape.dim[-2].dim_value
    elsewhere = {name for node in graph.graph.node if node.name not in preparing for name in node.input}
    constants = {name for node in graph.graph.node if node.name in preparing for name in node.input} - elsewhere
    for item in graph.graph.initializer:
        if item.name in constants and len(item.dims) == 4 and item.dims[1] > 1 and tuple(item.dims[2:]) == (1, 1):
            item.CopyFrom(numpy_helper.from_array(np.repeat(numpy_helper.to_array(item), width, axis=3), item.name))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The calibration rows, a few at a time, as the graph's own inputs: its normalisation is part of what is measured."""

    def __init__(self, calibration: Tensors, advance: Callable[[int, int], None]) -> None:
        self._batches = _feeds(calibration, advance)

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, None after the last."""
        return next(self._batches, None)


def _feeds(calibration: Tensors, advance: Callable[[int, int], None]) -> Iterator[dict[str, Any]]:
    total = rows(calibration)
    for start in range(0, total, ROWS):
        yield cut(calibration, start, start + ROWS)
        advance(min(start + ROWS, total), total)
