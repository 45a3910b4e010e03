"""Embedders of pictures: noise, black, white and the user's pictures; the embeddings, and which picture is nearest to which."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from ortserve.export.compare import difference
from ortserve.export.limits import least_agreement, tolerance
from ortserve.export.loaded import Loaded
from ortserve.export.module import TORCH_PACKAGES
from ortserve.export.options import Options
from ortserve.export.pictures import picture_probes, read_folder
from ortserve.export.preprocessing import decide
from ortserve.export.tasks import Advance, Case, Probe, Samples
from ortserve.export.to_onnx import export_pixels
from ortserve.export.wrapper import Prepared, TorchRunner
from ortserve.manifest import Agreement, Difference, Precision, Preprocessing, Source, TensorSpec
from ortserve.session import Tensors

# Fewer pictures have so few neighbours that one of them decides.
MIN_PICTURES = 50
# As for classifiers' logits: an embedding is what their last layer reads.
_LIMITS: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}
_AGREEMENT: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.98, "int8": 0.9}


class ImageFeatureExtraction:
    """`ortserve.export.tasks.BuildTask` for `pixels` uint8[batch,H,W,3] -> `embedding` float32[batch,D] of length 1."""

    name = "image-feature-extraction"
    samples = "pictures"
    measure = "nearest-picture agreement"
    remedy = "give trained --weights and a --calibration DIR of pictures like those you will serve"
    int8: Literal["static", "dynamic"] = "static"

    def __init__(self, preprocessing: Preprocessing, dimension: int) -> None:
        self._preprocessing = preprocessing
        shape = (preprocessing.height, preprocessing.width, 3)
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec(name="pixels", dtype="uint8", shape=("batch", *shape)),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec(name="embedding", dtype="float32", shape=("batch", dimension)),)

    def probes(self, max_batch: int) -> list[Probe]:
        """Noise at every batch size, all black, all white."""
        return picture_probes(self._preprocessing, max_batch)

    def read_samples(self, folder: Path, advance: Advance) -> Samples:
        """The folder's pictures. Raises CalibrationError."""
        return read_folder(folder, self._preprocessing, advance, enough=MIN_PICTURES)

    def unmeasurable(self, answers: Tensors) -> str | None:
        """Too few pictures."""
        pictures = len(answers["embedding"])
        return None if pictures >= MIN_PICTURES else f"{pictures} pictures; needs {MIN_PICTURES}"

    def compare(self, case: Case, have: Tensors, precision: Precision, options: Options) -> dict[str, Difference]:
        """Components of vectors of length 1."""
        limit = tolerance(options, _LIMITS["fp32"]) if precision == "fp32" else _LIMITS[precision]
        want = case.answers["embedding"][: len(have["embedding"])]
        return {"embedding": difference(have["embedding"], want, scale=1.0, limit=limit)}

    def agreement(self, have: Tensors, want: Tensors, precision: Precision, options: Options, note: str) -> Agreement:
        """The share of pictures whose nearest other picture is the reference's."""
        limit = self.agreement_limit(precision, options)
        value = float((_nearest(have["embedding"]) == _nearest(want["embedding"])).mean())
        return Agreement(measure=self.measure, value=value, limit=limit, samples=len(want["embedding"]), passed=value >= limit, note=note)

    def agreement_limit(self, precision: Precision, options: Options) -> float:
        """The least agreement that passes."""
        return least_agreement(precision, options, _AGREEMENT[precision])


class _Embedder(Prepared):
    """`pixels` uint8[N,H,W,3] -> `embedding` float32[N,D] of length 1."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The module's answer, scaled to length 1."""
        return nn.functional.normalize(self.model(self.prepared(pixels)).flatten(1).float())


class _Reference:
    """`Reference`: the module's own answer, normalised by PyTorch outside the graph."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        self._run = TorchRunner(model, preprocessing)
        self.description = self._run.description

    def __call__(self, inputs: Tensors) -> Tensors:
        """As `Reference`."""
        [answer] = self._run(inputs["pixels"])
        return {"embedding": nn.functional.normalize(torch.from_numpy(answer).flatten(1)).numpy()}


def from_embedder(model: nn.Module, name: str, options: Options, source: Source) -> Loaded:
    """A PyTorch module that answers one tensor for each picture, ready for the pipeline."""
    preprocessing = decide(options)
    reference = _Reference(model.float().eval().requires_grad_(False), preprocessing)
    black = np.zeros((1, preprocessing.height, preprocessing.width, 3), np.uint8)
    dimension = reference({"pixels": black})["embedding"].shape[1]
    return Loaded(
        name=name,
        task=ImageFeatureExtraction(preprocessing, dimension),
        reference=reference,
        graph=partial(_graph, model, preprocessing),
        source=source,
        packages=TORCH_PACKAGES,
        facts={"preprocessing": preprocessing},
        note=f"{dimension} dimensions",
    )


def _graph(model: nn.Module, preprocessing: Preprocessing, opset: int | None) -> onnx.ModelProto:
    return export_pixels(_Embedder(model, preprocessing), preprocessing, ["embedding"], opset)


def _nearest(embeddings: NDArray[np.float32]) -> NDArray[np.intp]:
    """For each row the other row with the largest cosine."""
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines.argmax(axis=1)
