"""What classifiers of anything have in common: logits, probabilities and the class that comes first, and how far they may differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ortserve.export.compare import difference
from ortserve.export.limits import least_agreement, tolerance
from ortserve.export.options import Options
from ortserve.export.tasks import Case
from ortserve.manifest import Agreement, Difference, Precision, TensorSpec
from ortserve.session import Tensors


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


class Classes:
    """The outputs `logits`, `probabilities` float32[batch,C] of a `BuildTask`, compared."""

    samples: str
    measure = "top-1 agreement"

    def __init__(self, classes: int) -> None:
        self.outputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", classes)) for name in ("logits", "probabilities"))

    def too_few(self, answers: Tensors, *, samples: int, classes: int) -> str | None:
        """What there is and what is needed, where the answers are fewer or of fewer classes; None where they are enough."""
        top1 = answers["probabilities"].argmax(axis=1)
        have, different = len(top1), len(np.unique(top1))
        if have >= samples and different >= classes:
            return None
        return f"{have} {self.samples} in {different} classes; needs {samples} and {classes}"

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
        """The share of samples whose first class is the reference's."""
        limit = self.agreement_limit(precision, options)
        same = have["probabilities"].argmax(axis=1) == want["probabilities"].argmax(axis=1)
        value = float(same.mean())
        return Agreement(measure=self.measure, value=value, limit=limit, samples=len(same), passed=value >= limit, note=note)

    def agreement_limit(self, precision: Precision, options: Options) -> float:
        """The least top-1 agreement that passes."""
        return limits_for(precision, options).agreement
