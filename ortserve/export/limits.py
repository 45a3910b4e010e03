"""Every number the parity gate compares with, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from ortserve.errors import SourceError
from ortserve.export.options import Options
from ortserve.manifest import Precision

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
_DEFAULTS: dict[Precision, Limits] = {
    "fp32": Limits(logits=1e-4, probabilities=1e-4, logits_far=1e-4, probabilities_far=1e-4, agreement=0.999),
    "fp16": Limits(logits=2e-2, probabilities=2e-2, logits_far=2e-2, probabilities_far=2e-2, agreement=0.995),
    "int8": Limits(logits=0.1, probabilities=0.25, logits_far=0.5, probabilities_far=1.0, agreement=0.98),
}


def limits_for(precision: Precision, options: Options) -> Limits:
    """The limits of a precision, with what the command line overrides."""
    default = _DEFAULTS[precision]
    if precision == "fp32":
        tolerance = default.logits if options.tolerance is None else options.tolerance
        if not 0 < tolerance < 1:
            raise SourceError(f"expected --tolerance between 0 and 1, got {tolerance}: the default is {default.logits}")
        return Limits(tolerance, tolerance, tolerance, tolerance, default.agreement)
    wanted = options.min_agreement_fp16 if precision == "fp16" else options.min_agreement_int8
    agreement = default.agreement if wanted is None else wanted
    if not 0 <= agreement <= 1:
        raise SourceError(f"expected --min-agreement-{precision} between 0 and 1, got {agreement}: the default is {default.agreement}")
    return Limits(default.logits, default.probabilities, default.logits_far, default.probabilities_far, agreement)
