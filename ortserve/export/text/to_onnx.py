"""A transformer to ONNX, and its operators fused into ONNX Runtime's own.

PyTorch's older exporter and plain ("eager") attention, because that is what the fusions know: on all-MiniLM-L6-v2 with torch 2.15 and
ONNX Runtime 1.31 the `torch.export` graph kept all of its 6 attentions unfused, with either attention, and the older exporter's too with
PyTorch's fused attention. Nor may onnxsim run before: it makes Gemm nodes of the products that the fusions look for. Together they
turn 533 nodes into 62.
"""

from __future__ import annotations

import io
from typing import Any

import onnx
import torch
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_by_fusion

from ortserve.errors import ExportError
from ortserve.export.chatter import quiet
from ortserve.export.graph import FUSED_DOMAIN, fused_operators
from ortserve.export.text.module import Classifier, Embedder
from ortserve.export.to_onnx import DEFAULT_OPSET, reason_of, stripped

# Architectures whose attentions the fusions are known to find, each tried: one that is left over is a fault, not a property of the model.
FUSED_FAMILIES = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
# A batch as the tracer sees it: two rows of unlike length.
_EXAMPLE_TOKENS = 9


def export(module: Embedder | Classifier, opset: int | None) -> onnx.ModelProto:
    """The graph of the module, weights inside, batch and sequence free.

    Raises ExportError where the model cannot be traced.
    """
    names = module.names
    mask = torch.ones((2, _EXAMPLE_TOKENS), dtype=torch.int64)
    mask[1, _EXAMPLE_TOKENS // 2 :] = 0
    example = {"input_ids": mask * 5, "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    free = {name: {0: "batch", 1: "sequence"} for name in names} | {name: {0: "batch"} for name in module.outputs}
    buffer = io.BytesIO()
    model: Any = module.model
    before = model.config._attn_implementation
    try:
        with quiet():
            model.set_attn_implementation("eager")
            torch.onnx.export(
                module.eval(),
                tuple(example[name] for name in names),
                buffer,
                dynamo=False,
                opset_version=opset or DEFAULT_OPSET,
                input_names=list(names),
                output_names=list(module.outputs),
                dynamic_axes=free,
            )
    except Exception as error:  # whatever the model's code or the tracer raises
        raise ExportError(
            f"PyTorch cannot trace the model with free lengths ({reason_of(error)}): --debug shows the whole trace; "
            "an architecture of BERT's family is known to work"
        ) from error
    finally:
        model.set_attn_implementation(before)
    return stripped(onnx.load_model_from_string(buffer.getvalue()))


def fuse(graph: onnx.ModelProto, config: Any) -> onnx.ModelProto:
    """The graph with attentions, layer norms, their skips, GELUs and the embeddings each as one operator, where the fusions find them.

    Raises ExportError where a model of `FUSED_FAMILIES` keeps one of its attentions: it would answer the same, slower.
    """
    options = FusionOptions("bert")
    options.use_raw_attention_mask(True)  # any mask, not only the length of a text that begins at the first token
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    try:
        with quiet():
            optimizer = optimize_by_fusion(
                copy,
                model_type="bert",
                num_heads=config.num_attention_heads,
                hidden_size=config.hidden_size,
                optimization_options=options,
            )
            optimizer.topological_sort()
    except Exception as error:  # its errors share no base
        raise ExportError(
            f"ONNX Runtime's fusions fail on the graph ({reason_of(error)}): "
            "build it with the locked requirements; they and this architecture do not go together otherwise"
        ) from error
    fused: onnx.ModelProto = optimizer.model
    if FUSED_DOMAIN not in {item.domain for item in fused.opset_import}:
        fused.opset_import.append(onnx.helper.make_opsetid(FUSED_DOMAIN, 1))
    attentions, layers = fused_operators(fused).get("Attention", 0), config.num_hidden_layers
    if config.model_type in FUSED_FAMILIES and attentions != layers:
        raise ExportError(
            f"expected {layers} fused attentions in a {config.model_type}, one for each layer, got {attentions}: the exporter's graph is not "
            "the one that ONNX Runtime's fusions know; use the locked torch, transformers and onnxruntime, or another --opset"
        )
    return stripped(fused)
