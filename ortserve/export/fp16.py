"""fp32 to fp16: half the bytes and the fast path of a GPU's tensor cores; inputs and outputs keep their dtypes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from ortserve.errors import ExportError
from ortserve.export.chatter import quiet
from ortserve.export.graph import fused_operators, preparing_nodes, rename_uses, with_node_names, with_shapes
from ortserve.session import Tensors

# Sums over many values, exponentials and variances: fp16's 11 bits of precision and its maximum of 65504 are too little for them.
FP32_OPS = (
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "SimplifiedLayerNormalization",
    "LpNormalization", "LRN", "MeanVarianceNormalization", "RMSNormalization",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    "GlobalAveragePool", "Softmax", "LogSoftmax", "Exp", "Pow",
)  # fmt: skip
# A node whose fp32 values come within a factor of four of fp16's maximum stays fp32: other pictures may reach further.
LARGEST = float(np.finfo(np.float16).max) / 4


def to_fp16(graph: onnx.ModelProto, samples: Iterable[Tensors], keep: Iterable[str] = ()) -> onnx.ModelProto:
    """The graph with fp16 weights and arithmetic, where that is safe; `samples` are batches that show how large the values grow.

    The nodes named in `keep` stay fp32.
    """
    source = onnx.ModelProto()
    source.CopyFrom(with_node_names(graph))
    fused = bool(fused_operators(source))
    blocked = {*keep, *preparing_nodes(source), *overflowing_nodes(source, samples)}
    with quiet():
        converted = convert_float_to_float16(
            with_shapes(source) if fused else source,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FP32_OPS],
            node_block_list=sorted(blocked),
            disable_shape_infer=fused,  # its own inference knows none of the fused operators
        )
    return without_round_trips(converted)


def overflowing_nodes(graph: onnx.ModelProto, samples: Iterable[Tensors]) -> list[str]:
    """Names of the nodes that read or write a value beyond `LARGEST` on any sample, found by running the fp32 graph.

    Needed because a CPU computes fp16 graphs in fp32: there an overflow would stay unseen until the model meets a GPU.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(with_shapes(graph))
    inferred = {value.name: value for value in probe.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    outputs = {value.name for value in probe.graph.output}
    probe.graph.output.extend(value for name, value in inferred.items() if name not in outputs)
    names = [value.name for value in probe.graph.output]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # every tensor of the graph must exist
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    large: set[str] = set()
    own = [value.name for value in probe.graph.input]
    for inputs in samples:
        for name, value in zip(names, session.run(names, {tensor: inputs[tensor] for tensor in own}), strict=True):
            if not np.isfinite(value).all():
                raise ExportError(f"the fp32 graph itself has NaN or Inf in {name!r}: mend the model before converting it")
            if np.abs(value).max(initial=0.0) > LARGEST:
                large.add(name)
    large |= {item.name for item in graph.graph.initializer if item.data_type == TensorProto.FLOAT and _largest(item) > LARGEST}
    return [node.name for node in graph.graph.node if large & {*node.input, *node.output}]


def without_round_trips(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without fp32 -> fp16 -> fp32 casts between neighbours: they cost time and eleven of the 24 bits.

    The converter wraps each fp32 node in casts of its own, also where two fp32 nodes follow each other.
    """
    nodes = graph.graph.node
    _drop_repeated(graph)
    producer = {output: node for node in nodes for output in node.output}
    outputs = {value.name for value in graph.graph.output}
    for up in list(nodes):
        down = producer.get(up.input[0]) if _casts_to(up, TensorProto.FLOAT) else None
        if down is None or not _casts_to(down, TensorProto.FLOAT16):
            continue
        old, new = up.output[0], down.input[0]
        nodes.remove(up)
        if old in outputs:  # the name of a graph output stays: the node that computes it takes that name
            maker = producer[new]
            maker.output[list(maker.output).index(new)] = old
            old, new = new, old
        rename_uses(graph, old, new)
    _drop_unused(graph)
    return _without_twins(graph)


def _largest(item: TensorProto) -> float:
    return float(np.abs(onnx.numpy_helper.to_array(item)).max(initial=0.0))


def _casts_to(node: onnx.NodeProto, dtype: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == dtype


def _without_twins(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Casts of one tensor to one type, merged into the first of them."""
    outputs = {value.name for value in graph.graph.output}
    first: dict[tuple[str, int], str] = {}
    for node in sorted(graph.graph.node, key=lambda node: node.output[0] not in outputs):
        if node.op_type != "Cast":
            continue
        key = (node.input[0], node.attribute[0].i)
        if key in first and node.output[0] not in outputs:
            rename_uses(graph, node.output[0], first[key])
        else:
            first.setdefault(key, node.output[0])
    _drop_unused(graph)
    return _sorted(graph)


def _drop_repeated(graph: onnx.ModelProto) -> None:
    """Remove nodes that compute a tensor a second time: the converter casts a constant again for each fp32 node that reads it."""
    seen: set[str] = set()
    for node in list(graph.graph.node):
        outputs = set(node.output) - {""}
        if outputs and outputs <= seen:
            graph.graph.node.remove(node)
        seen |= outputs


def _drop_unused(graph: onnx.ModelProto) -> None:
    """Remove casts that nobody reads, and type notes of tensors that are gone or changed."""
    outputs = {value.name for value in graph.graph.output}
    while True:
        read = {name for node in graph.graph.node for name in node.input} | outputs
        dead = [node for node in graph.graph.node if node.op_type == "Cast" and node.output[0] not in read]
        if not dead:
            break
        for node in dead:
            graph.graph.node.remove(node)
    graph.graph.ClearField("value_info")


def _sorted(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes in an order where every input is computed before it is read: the converter appends its casts at the end."""
    waiting = list(graph.graph.node)
    made = {output for node in waiting for output in node.output}
    done: set[str] = set()
    ordered = []
    while waiting:
        ready = [node for node in waiting if all(name in done or name not in made for name in node.input)]
        if not ready:
            raise ExportError("the fp16 graph has a cycle: try another --opset")
        for node in ready:
            waiting.remove(node)
            done.update(node.output)
        ordered += ready
    del graph.graph.node[:]
    graph.graph.node.extend(ordered)
    return graph


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Write the graph, weights inside, after ONNX's own checker has passed it."""
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))
