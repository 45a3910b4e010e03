"""A given graph becomes one of ours: uint8 pixels in, logits and probabilities out, a free batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from ortserve.errors import ExportError
from ortserve.export.graph import opset_of, rename_uses
from ortserve.export.to_onnx import DEFAULT_OPSET, stripped
from ortserve.manifest import Preprocessing

# Keeps the given graph's names apart from ours.
PREFIX = "model."
# Per-channel QDQ and Softmax over one axis exist from here on; older graphs are converted.
OLDEST_OPSET = 13

Layout = Literal["nchw", "nhwc", "pixels"]


@dataclass(frozen=True)
class Entry:
    """What the given graph takes."""

    input: str
    layout: Layout  # float32 channels first, float32 channels last, or uint8 channels last (then it normalises by itself)
    batch: int | None  # None: free
    size: tuple[int | None, int | None]  # height, width; None: free


@dataclass(frozen=True)
class Interface(Entry):
    """What the given graph takes and answers."""

    output: str
    logits: str | None  # the input of the Softmax the graph ends in; None where it ends in logits


def compose(given: onnx.ModelProto, face: Interface, preprocessing: Preprocessing, opset: int | None) -> onnx.ModelProto:
    """`pixels` uint8[batch,H,W,3] -> `logits`, `probabilities` float32[batch,C] around the given graph.

    Raises ExportError where its opset cannot be converted or it fixes the batch inside.
    """
    model = entered(given, face, preprocessing, opset)
    graph = model.graph
    answer, logits = PREFIX + face.output, None if face.logits is None else PREFIX + face.logits
    if logits is None:
        rename(model, answer, "logits")
        graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=1))
    else:
        rename(model, logits, "logits")
        rename(model, answer, "probabilities")
    del graph.output[:]
    for name in ("logits", "probabilities"):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]))
    shape = free_shapes(model, ["logits"], preprocessing, face)[0]
    for value in graph.output:
        value.type.tensor_type.shape.dim[1].dim_value = shape[0]
    return stripped(model)


def entered(given: onnx.ModelProto, entry: Entry, preprocessing: Preprocessing, opset: int | None, *, free: bool = True) -> onnx.ModelProto:
    """The given graph under `PREFIX` with `pixels` uint8[batch,H,W,3] before it, its outputs as they were; its batch free where asked."""
    model = _in_opset(given, opset or max(opset_of(given), DEFAULT_OPSET if opset_of(given) < OLDEST_OPSET else 0))
    model = onnx.compose.add_prefix(model, PREFIX)
    _leave_out_empty_inputs(model)
    if entry.batch is not None and free:
        _free_batch(model, entry.batch)
    _prepend(model.graph, PREFIX + entry.input, entry, preprocessing)
    model.graph.ClearField("value_info")  # shapes of the batch it was exported with
    return model


def _in_opset(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    if wanted == opset_of(model):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.version_converter.convert_version(model, wanted)
    except Exception as error:  # a C++ extension: its errors share no base
        raise ExportError(
            f"the graph cannot be converted from opset {opset_of(model)} to {wanted} ({' '.join(str(error).split())[:160]}): "
            "export it again in a newer opset, or give another --opset"
        ) from error


def _prepend(graph: onnx.GraphProto, entry: str, face: Entry, preprocessing: Preprocessing) -> None:
    """Put the cast, layout and normalisation in front of the graph's own input."""
    shape: list[str | int | None] = ["batch", preprocessing.height, preprocessing.width, 3]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape))
    if face.layout == "pixels":
        nodes = [helper.make_node("Identity", ["pixels"], [entry], name="input")]
    else:
        channels_first = face.layout == "nchw"
        view = (1, 3, 1, 1) if channels_first else (1, 1, 1, 3)
        std, mean = np.array(preprocessing.std, np.float64), np.array(preprocessing.mean, np.float64)
        graph.initializer.append(numpy_helper.from_array((1.0 / (255.0 * std)).astype(np.float32).reshape(view), "scale"))
        graph.initializer.append(numpy_helper.from_array((-mean / std).astype(np.float32).reshape(view), "bias"))
        nodes = [helper.make_node("Cast", ["pixels"], ["cast"], name="cast", to=TensorProto.FLOAT)]
        if channels_first:
            nodes.append(helper.make_node("Transpose", ["cast"], ["layout"], name="layout", perm=[0, 3, 1, 2]))
        nodes.append(helper.make_node("Mul", [nodes[-1].output[0], "scale"], ["scaled"], name="scale"))
        turned = preprocessing.channels == "bgr"
        nodes.append(helper.make_node("Add", ["scaled", "bias"], ["biased" if turned else entry], name="bias"))
        if turned:
            graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "bgr"))
            nodes.append(helper.make_node("Gather", ["biased", "bgr"], [entry], name="turn", axis=1 if channels_first else 3))
    own = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *own])


def _constants(model: onnx.ModelProto) -> dict[str, TensorProto]:
    constants = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return constants


def _leave_out_empty_inputs(model: onnx.ModelProto) -> None:
    """Resize up to opset 12 says "none" by an empty tensor; since then by no input at all, which a cast to fp16 cannot hide."""
    empty = {name for name, tensor in _constants(model).items() if 0 in tensor.dims}
    for node in model.graph.node:
        if node.op_type == "Resize":
            node.input[:] = ["" if name in empty else name for name in node.input]


def _free_batch(model: onnx.ModelProto, batch: int) -> None:
    """Let every Reshape to a constant shape that begins with the fixed batch take the batch it is given (ONNX: 0 copies it)."""
    constants = _constants(model)
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if len(shape) and shape[0] == batch and not any(item.name == "allowzero" and item.i for item in node.attribute):
            shape[0] = 0
            name = f"free_batch_{index}"  # of its own: another node may share the constant
            model.graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name


def free_shapes(model: onnx.ModelProto, outputs: list[str], preprocessing: Preprocessing, face: Entry) -> list[tuple[int, ...]]:
    """The shape of each output's rows, where the graph runs with other batches than its own. Raises ExportError where it does not."""
    shapes: list[tuple[int, ...]] = []
    try:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for rows in (1, 2, 3):
            answers = session.run(outputs, {"pixels": np.zeros((rows, preprocessing.height, preprocessing.width, 3), np.uint8)})
            if wrong := [list(answer.shape) for answer in answers if answer.ndim < 2 or answer.shape[0] != rows]:
                raise ExportError(f"expected [{rows},...] for {rows} pictures, got {wrong[0]}")
            shapes = [answer.shape[1:] for answer in answers]
    except Exception as error:  # the binding raises a family of types that share no base
        fixed = "" if face.batch is None else f" (it was exported for {face.batch})"
        raise ExportError(
            f"the graph does not run with a free batch{fixed}: {' '.join(str(error).split())[:200]}: "
            "export it again with a dynamic first dimension"
        ) from error
    return shapes


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give a computed tensor another name."""
    rename_uses(model, old, new)
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == old:
                node.output[index] = new
