"""A PyTorch module with its facts, ready for the pipeline."""

from __future__ import annotations

from functools import partial

from torch import nn

from ortserve.export.labels import matching
from ortserve.export.loaded import Loaded
from ortserve.export.tasks.image_classification import ImageClassification
from ortserve.export.to_onnx import export
from ortserve.export.wrapper import TorchReference, ready
from ortserve.manifest import Preprocessing, Source

TORCH_PACKAGES = ("torch", "onnx", "onnxscript")


def from_module(
    model: nn.Module,
    name: str,
    labels: tuple[str, ...] | None,
    preprocessing: Preprocessing,
    source: Source,
    packages: tuple[str, ...] = (),
) -> Loaded:
    """A PyTorch model, checked: it runs on the input size, and there are as many labels as classes."""
    classes = ready(model, preprocessing)
    return Loaded(
        name=name,
        task=ImageClassification(preprocessing, classes),
        reference=TorchReference(model, preprocessing),
        graph=partial(export, model, preprocessing),
        source=source,
        packages=(*TORCH_PACKAGES, *packages),
        facts={"labels": matching(labels, classes), "preprocessing": preprocessing},
        note=f"{classes} classes",
    )
