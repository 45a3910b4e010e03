"""The build side of a task: what its models are checked on, and how close is close enough. One file here for each in `ortserve/tasks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ortserve.export.options import Options
from ortserve.manifest import Agreement, Difference, Precision, TensorSpec
from ortserve.session import Tensors

Advance = Callable[[int, int], None]  # told of what is done and what there is in all


@dataclass(frozen=True)
class Samples:
    """Rows like those that will be served: `calibration` sets int8 ranges, `measurement` measures the agreement."""

    calibration: Tensors
    measurement: Tensors
    note: str  # how the two relate, for the report


@dataclass(frozen=True)
class Probe:
    """Input rows of one kind, and the batch sizes they are run at."""

    inputs: str  # "noise", "black", "pictures"
    tensors: Tensors
    batches: tuple[int, ...]


@dataclass(frozen=True)
class Case(Probe):
    """A probe with what the reference answers for all of its rows."""

    answers: Tensors


class BuildTask(Protocol):
    """What the stages of a build ask of a task. Made for one model; keeps nothing of a build."""

    name: str  # the manifest's: "image-classification"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    samples: str  # what its samples are called: "pictures"
    measure: str  # what agreement on them is called: "top-1 agreement"
    remedy: str  # what to give where agreement cannot be measured
    int8: Literal["static", "dynamic"]  # ranges of activations measured on samples, or by the graph itself at every run

    def probes(self, max_batch: int) -> list[Probe]:
        """What every stored file is run on, samples aside."""
        ...

    def read_samples(self, folder: Path, advance: Advance) -> Samples:
        """The samples in the folder that --calibration names. Raises CalibrationError."""
        ...

    def unmeasurable(self, answers: Tensors) -> str | None:
        """Why agreement with these answers of the reference to the samples would say nothing; None where it does say something."""
        ...

    def compare(self, case: Case, have: Tensors, precision: Precision, options: Options) -> dict[str, Difference]:
        """How far each output of a stored file is from the case's first rows."""
        ...

    def agreement(self, have: Tensors, want: Tensors, precision: Precision, options: Options, note: str) -> Agreement:
        """How often a stored file says the same as the reference, on samples where that is measurable."""
        ...

    def agreement_limit(self, precision: Precision, options: Options) -> float:
        """The least agreement that passes, 0 to 1. Raises SourceError where the option for it is out of range."""
        ...


def batches_up_to(max_batch: int) -> tuple[int, ...]:
    """The batch sizes that are checked: one, two, an odd one, and the largest that will be served."""
    return tuple(sorted({1, 2, 7, max_batch} - set(range(max_batch + 1, 8))))


def rows(tensors: Tensors) -> int:
    """How many rows these tensors have."""
    return len(next(iter(tensors.values())))


def cut(tensors: Tensors, start: int, stop: int) -> Tensors:
    """Rows `start` to `stop`."""
    return {name: tensor[start:stop] for name, tensor in tensors.items()}
