"""What the command line says of the parity gate's numbers. The numbers themselves stand in the task's file under `export/tasks`."""

from __future__ import annotations

from ortserve.errors import SourceError
from ortserve.export.options import Options
from ortserve.manifest import Precision


def tolerance(options: Options, default: float) -> float:
    """The largest difference in fp32: --tolerance, else the default. Raises SourceError for one out of range."""
    value = default if options.tolerance is None else options.tolerance
    if not 0 < value < 1:
        raise SourceError(f"expected --tolerance between 0 and 1, got {value}: the default is {default}")
    return value


def least_agreement(precision: Precision, options: Options, default: float) -> float:
    """The least agreement wanted: --min-agreement-fp16 or -int8, else the default. Raises SourceError for one out of range."""
    wanted = {"fp16": options.min_agreement_fp16, "int8": options.min_agreement_int8}.get(precision)
    value = default if wanted is None else wanted
    if not 0 <= value <= 1:
        raise SourceError(f"expected --min-agreement-{precision} between 0 and 1, got {value}: the default is {default}")
    return value
