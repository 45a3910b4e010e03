"""Questions about an ONNX graph: how large it is, which nodes only prepare the picture."""

from __future__ import annotations

import onnx

from ortserve.export.chatter import quiet

# The domain of ONNX Runtime's own operators.
FUSED_DOMAIN = "com.microsoft"

# What may stand between the picture and the first learned operator: our own normalisation and layout, or the model's own.
_PREPARING = {"Cast", "Transpose", "Mul", "Add", "Sub", "Div"}


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


def preparing_nodes(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes between the input and the first learned operator: they stay fp32 in every precision."""
    names: list[str] = []
    tensor = graph.graph.input[0].name
    while True:
        users = [node for node in graph.graph.node if tensor in node.input]
        if len(users) != 1 or users[0].op_type not in _PREPARING:
            return names
        names.append(users[0].name)
        tensor = users[0].output[0]


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
