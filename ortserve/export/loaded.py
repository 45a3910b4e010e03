"""What every kind of SOURCE turns into: the facts of a model, how to get its graph, and the reference it is checked against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from ortserve.manifest import Preprocessing, Source

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Answers:
    """What a model answers for some rows: `logits` and `probabilities`, both float32[rows, classes]."""

    logits: NDArray[Any]
    probabilities: NDArray[Any]


class Reference(Protocol):
    """The model as it was given, before anything was exported."""

    description: str  # "PyTorch fp32 (torch 2.15.0)"

    def __call__(self, pixels: Pixels) -> Answers:
        """The answers for uint8[N,H,W,3]."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Preprocessed pictures, uint8[N,H,W,3]: `calibration` sets the int8 ranges, `measurement` measures the agreement."""

    calibration: Pixels
    measurement: Pixels
    note: str  # how the two relate, for the report


@dataclass(frozen=True)
class Loaded:
    """A source, understood."""

    name: str  # for the store, unless --name says otherwise
    reference: Reference
    graph: Callable[[int | None], onnx.ModelProto]  # opset (None: the default) -> uint8 pixels to logits and probabilities
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: Source
    packages: tuple[str, ...]  # whose versions belong in the manifest
    pictures: Pictures | None = None  # those that the source brings itself; --calibration replaces them
