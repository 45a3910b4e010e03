"""Questions about an ONNX graph: how large it is, which nodes only prepare the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from ortserve.export.chatter import quiet

# The domain of ONNX Runtime's own operators.
FUSED_DOMAIN = "com.microsoft"

# What may stand between the picture and the first learned operator: our own normalisation and layout, or the model's own.
_PREPARING = {"Cast", "Transpose", "Mul", "Add", "Sub", "Div"}
_LEARNED = {"ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU"}


def node_count(graph: onnx.ModelProto) -> int:
    """Nodes of the main graph."""
    return len(graph.graph.node)


def fused_operators(graph: onnx.ModelProto) -> dict[str, int]:
    """How many nodes there are of each of ONNX Runtime's own operators, by name; {} for a graph of ONNX's operators alone."""
    names = sorted(node.op_type for node in graph.graph.node if node.domain == FUSED_DOMAIN)
    return {name: names.count(name) for name in dict.fromkeys(names)}


def with_shapes(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the types and shapes of its tensors written down, as far as they can be told.

    ONNX's own inference stops at an operator it does not know; where there are such, ONNX Runtime's tool takes over.
    """
    if not fused_operators(graph):
        return onnx.shape_inference.infer_shapes(graph)
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    with quiet():
        inferred: onnx.ModelProto = SymbolicShapeInference.infer_shapes(graph, auto_merge=True)
    return inferred


def opset_of(graph: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that the graph uses."""
    return next(int(item.version) for item in graph.opset_import if item.domain in ("", "ai.onnx"))


def once_each_opset(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with each operator set imported once: `onnx.compose` imports it anew for every part, and the quantizer minds."""
    versions = {"" if item.domain == "ai.onnx" else item.domain: item.version for item in graph.opset_import}
    del graph.opset_import[:]
    graph.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    return graph


def preparing_nodes(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes between the input and the first learned operator: they stay fp32 in every precision."""
    names: list[str] = []
    tensor = graph.graph.input[0].name
    while True:
        # PyTorch's exporter asks for the shape where a module needs the batch's size, as resnet50's mean does: that takes no pixel.
        users = [node for node in graph.graph.node if tensor in node.input and node.op_type != "Shape"]
        if len(users) != 1 or users[0].op_type not in _PREPARING:
            return names
        names.append(users[0].name)
        tensor = users[0].output[0]


def closing_nodes(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes between the last learned operators and the outputs: a detector's decoding.

    A convolution to one channel counts as decoding too: in YOLO's heads that is the expected value over a box side's bins.
    """
    makers = {output: node for node in graph.graph.node for output in node.output}
    weights = {item.name: item.dims for item in graph.graph.initializer}
    names: set[str] = set()
    tensors = [value.name for value in graph.graph.output]
    while tensors:
        node = makers.get(tensors.pop())
        if node is None or node.name in names or _is_learned(node, weights):
            continue
        names.add(node.name)
        tensors += node.input
    return sorted(names)


def _is_learned(node: onnx.NodeProto, weights: Mapping[str, Sequence[int]]) -> bool:
    if node.op_type == "Conv":
        return weights.get(node.input[1], (0,))[0] != 1
    return node.op_type in _LEARNED


def with_node_names(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with a name for every node: the converters block nodes by name, and ONNX does not demand one."""
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return graph


def rename_uses(graph: onnx.ModelProto, old: str, new: str) -> None:
    """Let every node that reads the tensor `old` read `new`."""
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def named(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the first dimension of every input and output called "batch"."""
    for value in [*graph.graph.input, *graph.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return graph
