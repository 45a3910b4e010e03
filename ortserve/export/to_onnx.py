"""PyTorch to ONNX through `torch.export`: dynamic batch, one file, nothing of the builder's machine inside."""

from __future__ import annotations

import onnx
import torch
from torch import nn

from ortserve.errors import ExportError
from ortserve.export.chatter import quiet
from ortserve.export.graph import named
from ortserve.export.wrapper import Packaged
from ortserve.manifest import Preprocessing

# PyTorch's exporter writes its operators in opset 18 and converts from there, so 18 is the one that needs no conversion, and
# ONNX Runtime, TensorRT 10 and OpenVINO all read it.
DEFAULT_OPSET = 18
# An upper bound has to be named; the verified maximum is --max-batch.
_MOST_ROWS = 4096


def export(model: nn.Module, preprocessing: Preprocessing, opset: int | None) -> onnx.ModelProto:
    """The graph `pixels` uint8[batch,H,W,3] -> `logits`, `probabilities` float32[batch,C], weights inside. Raises as `export_pixels`."""
    return export_pixels(Packaged(model, preprocessing), preprocessing, ["logits", "probabilities"], opset)


def export_pixels(module: nn.Module, preprocessing: Preprocessing, outputs: list[str], opset: int | None) -> onnx.ModelProto:
    """The graph of a module that takes `pixels` uint8[batch,H,W,3], its outputs under these names, weights inside.

    Raises ExportError where the module cannot be traced with a free batch.
    """
    # Two rows: one row would be taken for a constant and fix the batch.
    example = torch.zeros((2, preprocessing.height, preprocessing.width, 3), dtype=torch.uint8)
    try:
        with quiet():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=opset or DEFAULT_OPSET,
                input_names=["pixels"],
                output_names=outputs,
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=_MOST_ROWS)}},
            )
    except Exception as error:  # the exporter wraps whatever the model or its own passes raise
        raise ExportError(
            f"PyTorch cannot export the model with a free batch ({reason_of(error)}): "
            "its forward must not branch on values or fix the batch size; --debug shows the whole trace"
        ) from error
    if program is None:
        raise ExportError("PyTorch's exporter gave no program: this version is not supported, install the locked requirements")
    return named(stripped(program.model_proto))


def stripped(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without doc strings and metadata: the exporter writes stack traces with the builder's paths there."""
    parts = [graph, graph.graph, *graph.graph.node, *graph.graph.initializer, *graph.graph.value_info]
    for part in [*parts, *graph.graph.input, *graph.graph.output, *graph.functions]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return graph


def reason_of(error: BaseException) -> str:
    """The innermost cause in one line: the exporter's own message only says which step failed."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
