"""Classifiers of pictures: noise, black, white and the user's pictures; logits, probabilities and the class that comes first."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ortserve.export.pictures import picture_probes, read_folder
from ortserve.export.tasks import Advance, Probe, Samples
from ortserve.export.tasks.classes import Classes
from ortserve.manifest import Preprocessing, TensorSpec
from ortserve.session import Tensors

# Fewer pictures, or fewer classes on them, and agreement says nothing: a random resnet50 gives one class to any 26 pictures.
MIN_PICTURES = 200
MIN_CLASSES = 5


class ImageClassification(Classes):
    """`ortserve.export.tasks.BuildTask` for `pixels` uint8[batch,H,W,3] -> `logits`, `probabilities` float32[batch,C]."""

    name = "image-classification"
    samples = "pictures"
    remedy = "give trained --weights and a --calibration DIR of varied pictures like those you will serve"
    int8: Literal["static", "dynamic"] = "static"

    def __init__(self, preprocessing: Preprocessing, classes: int) -> None:
        super().__init__(classes)
        self._preprocessing = preprocessing
        shape = (preprocessing.height, preprocessing.width, 3)
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec(name="pixels", dtype="uint8", shape=("batch", *shape)),)

    def probes(self, max_batch: int) -> list[Probe]:
        """Noise at every batch size, all black, all white."""
        return picture_probes(self._preprocessing, max_batch)

    def read_samples(self, folder: Path, advance: Advance) -> Samples:
        """The folder's pictures, some to calibrate on and others to measure on. Raises CalibrationError."""
        return read_folder(folder, self._preprocessing, advance, enough=MIN_PICTURES)

    def unmeasurable(self, answers: Tensors) -> str | None:
        """Too few pictures, or too few classes on them."""
        return self.too_few(answers, samples=MIN_PICTURES, classes=MIN_CLASSES)
