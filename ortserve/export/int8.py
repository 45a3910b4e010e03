"""fp32 to int8 (onnxruntime.quantization), weights per channel: with ranges of activations measured beforehand, or at every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
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

    Weights and activations are both signed (S8S8), ONNX Runtime's first choice for QDQ: unsigned activations with signed weights
    saturate on CPUs without VNNI, so that what was verified on one machine would answer differently on another. (By its documentation:
    on a CPU with VNNI both gave the same answers here; none without was at hand.)

    MinMax because it is the simplest and nothing measured speaks against it: on digits and on examples/research Percentile (99.999)
    moved the scales by 4 % at most and no class changed, and Entropy with ONNX Runtime's own defaults (128 bins for 128 steps, so
    nothing to choose) found MinMax's scales exactly. A deep trained network, where outliers may matter, was not measured.
    """
    source = onnx.ModelProto()
    source.CopyFrom(with_node_names(graph))
    with quiet():
        quantize_static(
            source,
            path,
            _Reader({value.name: calibration[value.name] for value in source.graph.input}, advance),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[*keep, *preparing_nodes(source), *(node.name for node in source.graph.node if node.op_type == "Softmax")],
        )


def to_dynamic_int8(graph: onnx.ModelProto, path: Path) -> None:
    """Write the graph to `path` with int8 weights, its activations quantised at every run by their own range: needs no calibration.

    For transformers, whose activations have outliers that differ from text to text. Weights have seven bits (`reduce_range`): their
    products with unsigned activations saturate else on CPUs without VNNI, and what was verified here would answer differently there. It
    cost 0.001 of Spearman's rho on all-MiniLM-L6-v2. Per tensor instead of per channel would have cost 0.03.
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
