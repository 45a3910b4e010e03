"""A detector that is a PyTorch module with raw outputs, ready for the pipeline."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnx
import torch
from torch import nn

from ortserve.errors import SourceError
from ortserve.export.compose import PREFIX
from ortserve.export.detection_form import Form
from ortserve.export.detection_graph import raw_names
from ortserve.export.detector import from_raw
from ortserve.export.loaded import Loaded
from ortserve.export.module import TORCH_PACKAGES
from ortserve.export.options import Options
from ortserve.export.to_onnx import export_pixels
from ortserve.export.wrapper import Prepared, TorchRunner
from ortserve.manifest import Preprocessing, Source


def from_detector(
    model: nn.Module,
    *,
    name: str,
    options: Options,
    preprocessing: Preprocessing,
    labels: tuple[str, ...] | None,
    source: Source,
    packages: tuple[str, ...] = (),
    candidates_per_class: int | None = None,
) -> Loaded:
    """The module's raw outputs, one tensor or scores and boxes, understood.

    Raises SourceError where it does not take float32[N,3,H,W], or its outputs are no detector's.
    """
    model.float().eval().requires_grad_(False)
    size = (preprocessing.height, preprocessing.width)
    try:
        with torch.inference_mode():
            answer = model(torch.zeros(2, 3, *size))
    except Exception as error:  # the user's code may raise anything
        reason = next(iter(str(error).splitlines()), "")
        raise SourceError(
            f"the model does not run on float32[2,3,{size[0]},{size[1]}] ({type(error).__name__}: {reason}): set --input-size"
        ) from error
    outputs = [answer] if isinstance(answer, torch.Tensor) else answer
    if not isinstance(outputs, list | tuple) or not all(isinstance(output, torch.Tensor) and output.ndim == 3 for output in outputs):
        raise SourceError(
            f"expected the model to answer one tensor, or scores [N,boxes,classes] and boxes [N,boxes,4], got {_shown(answer)}: "
            "let the factory return a module that gives these alone"
        )
    return from_raw(
        TorchRunner(model, preprocessing),
        name=name,
        options=options,
        preprocessing=preprocessing,
        labels=labels,
        source=source,
        packages=(*TORCH_PACKAGES, *packages),
        graph=partial(_graph, model, preprocessing),
        candidates_per_class=candidates_per_class,
        shown=source.reference,
    )


class _RawOutputs(Prepared):
    """`pixels` uint8[N,H,W,3] -> the model's outputs, the scores first."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, order: tuple[int, ...]) -> None:
        super().__init__(model, preprocessing)
        self._order = order

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """In the order that decoding wants."""
        answer = self.model(self.prepared(pixels))
        outputs = [answer] if isinstance(answer, torch.Tensor) else answer
        return tuple(outputs[index].float() for index in self._order)


def _graph(model: nn.Module, preprocessing: Preprocessing, form: Form, order: tuple[int, ...], opset: int | None) -> onnx.ModelProto:
    exported = export_pixels(_RawOutputs(model, preprocessing, order), preprocessing, list(raw_names(form)), opset)
    prefixed: onnx.ModelProto = onnx.compose.add_prefix(exported, PREFIX, rename_inputs=False, rename_outputs=False)
    return prefixed


def _shown(answer: Any) -> str:
    if isinstance(answer, list | tuple):
        return f"{type(answer).__name__} of {', '.join(_shown(item) for item in answer[:4])}"
    return f"{list(answer.shape)}" if isinstance(answer, torch.Tensor) else type(answer).__name__
