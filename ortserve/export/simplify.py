"""A smaller graph that answers the same: constants folded, shapes inferred, dead nodes gone (onnxsim)."""

from __future__ import annotations

import onnx
import onnxsim

from ortserve.errors import ExportError
from ortserve.export.chatter import quiet
from ortserve.export.graph import named

# onnxsim runs the graph before and after on this many random inputs; verification then measures far more strictly.
CHECKS = 3


def simplify(graph: onnx.ModelProto, *, rows: int = 2) -> onnx.ModelProto:
    """The simplified graph, its batch still free; `rows` is a batch that it takes.

    Raises ExportError where the two disagree on random input.
    """
    shapes = {value.name: [rows, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])] for value in graph.graph.input}
    try:
        with quiet():
            smaller, same = onnxsim.simplify(graph, check_n=CHECKS, test_input_shapes=shapes)
    except Exception as error:  # a C++ extension: its errors share no base
        raise ExportError(f"onnxsim cannot simplify the graph ({' '.join(str(error).split())[:200]}): try another --opset") from error
    if not same:
        raise ExportError(f"the simplified graph answers differently on {CHECKS} random inputs: try another --opset")
    return named(smaller)
