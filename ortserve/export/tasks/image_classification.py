"""Classifiers of pictures: noise, black, white and the user's pictures; logits, probabilities and the class that comes first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ortserve.export.compare import difference
from ortserve.export.limits import least_agreement, tolerance
from ortserve.export.options import Options
from ortserve.export.pictures import picture_probes, read_folder
from ortserve.export.tasks import Advance, Case, Probe, Samples
from ortserve.manifest import Agreement, Difference, Precision, Preprocessing, TensorSpec
from ortserve.session import Tensors

# Fewer pictures, or fewer classes on them, and agreement says nothing: a random resnet50 gives one class to any 26 pictures.
MIN_PICTURES = 200
MIN_CLASSES = 5


@dataclass(frozen=True)
class Limits:
    """What one precision may differ by. `logits` relative to the reference's range, `probabilities` absolute, `agreement` 0..1."""

    logits: float
    probabilities: float
    logits_far: float  # on noise, black and white: far from what the int8 ranges were measured on
    probabilities_far: float
    agreement: float


# fp32: only the order of additions differs; measured 1e-7 to 1e-5 (digits, examples/research, random resnet50).
# fp16: one rounding is 5e-4 and they add up with depth; measured 4e-4 on the two small models. 2e-2 leaves deep ones room and is far
#   below what a mutant shows. Deep trained models were not measured.
# int8 on pictures: measured 0.016 and 0.004 of the logits' range in the first batch, 0.07 over all held-back digits.
# int8 far from pictures: activations beyond the calibrated ranges are clipped, so differences are the method's and no fault: measured
#   0.2 and 0.12 of the range. A probability may then move by anything, so 1.0 there never fails: what holds int8 is its agreement,
#   the pictures, the logits and the search for NaN and Inf.
# fp32 agreement below 1: rounding may decide a tie the other way, one picture in a thousand.
_LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(logits=1e-4, probabilities=1e-4, logits_far=1e-4, probabilities_far=1e-4, agreement=0.999),
    "fp16": Limits(logits=2e-2, probabilities=2e-2, logits_far=2e-2, probabilities_far=2e-2, agreement=0.995),
    "int8": Limits(logits=0.1, probabilities=0.25, logits_far=0.5, probabilities_far=1.0, agreement=0.98),
}


def limits_for(precision: Precision, options: Options) -> Limits:
    """The limits of a precision, with what the command line overrides. Raises SourceError where that is out of range."""
    default = _LIMITS[precision]
    agreement = least_agreement(precision, options, default.agreement)
    if precision == "fp32":
        largest = tolerance(options, default.logits)
        return Limits(largest, largest, largest, largest, agreement)
    return Limits(default.logits, default.probabilities, default.logits_far, default.probabilities_far, agreement)


class ImageClassification:
    """`ortserve.export.tasks.BuildTask` for `pixels` uint8[batch,H,W,3] -> `logits`, `probabilities` float32[batch,C]."""

    name = "image-classification"
    samples = "pictures"
    measure = "top-1 agreement"
    remedy = "give trained --weights and a --calibration DIR of varied pictures like those you will serve"
    int8: Literal["static", "dynamic"] = "static"

    def __init__(self, preprocessing: Preprocessing, classes: int) -> None:
        self._preprocessing = preprocessing
        shape = (preprocessing.height, preprocessing.width, 3)
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec(name="pixels", dtype="uint8", shape=("batch", *shape)),)
        self.outputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", classes)) for name in ("logits", "probabilities"))

    def probes(self, max_batch: int) -> list[Probe]:
        """Noise at every batch size, all black, all white."""
        return picture_probes(self._preprocessing, max_batch)

    def read_samples(self, folder: Path, advance: Advance) -> Samples:
        """The folder's pictures, some to calibrate on and others to measure on. Raises CalibrationError."""
        return read_folder(folder, self._preprocessing, advance, enough=MIN_PICTURES)

    def unmeasurable(self, answers: Tensors) -> str | None:
        """Too few pictures, or too few classes on them."""
        top1 = answers["probabilities"].argmax(axis=1)
        pictures, classes = len(top1), len(np.unique(top1))
        if pictures >= MIN_PICTURES and classes >= MIN_CLASSES:
            return None
        return f"{pictures} pictures in {classes} classes; needs {MIN_PICTURES} and {MIN_CLASSES}"

    def compare(self, case: Case, have: Tensors, precision: Precision, options: Options) -> dict[str, Difference]:
        """Logits relative to their range on the case, probabilities absolute."""
        limits = limits_for(precision, options)
        near = case.inputs == self.samples
        want = {name: tensor[: len(have["logits"])] for name, tensor in case.answers.items()}
        # One scale for all rows of a kind: a single flat row would make a small error look large.
        scale = float(np.ptp(case.answers["logits"])) or 1.0
        return {
            "logits": difference(have["logits"], want["logits"], scale=scale, limit=limits.logits if near else limits.logits_far),
            "probabilities": difference(
                have["probabilities"], want["probabilities"], scale=1.0, limit=limits.probabilities if near else limits.probabilities_far
            ),
        }

    def agreement(self, have: Tensors, want: Tensors, precision: Precision, options: Options, note: str) -> Agreement:
        """The share of pictures whose first class is the reference's."""
        limit = self.agreement_limit(precision, options)
        same = have["probabilities"].argmax(axis=1) == want["probabilities"].argmax(axis=1)
        value = float(same.mean())
        return Agreement(measure=self.measure, value=value, limit=limit, samples=len(same), passed=value >= limit, note=note)

    def agreement_limit(self, precision: Precision, options: Options) -> float:
        """The least top-1 agreement that passes."""
        return limits_for(precision, options).agreement
