"""What every kind of SOURCE turns into: the facts of a model, how to get its graph, and the reference it is checked against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from ortserve.export.simplify import simplify
from ortserve.export.tasks import BuildTask, Samples
from ortserve.manifest import Source
from ortserve.session import Tensors

Pixels = NDArray[np.uint8]


class Reference(Protocol):
    """The model as it was given, before anything was exported."""

    description: str  # "PyTorch fp32 (torch 2.15.0)"

    def __call__(self, inputs: Tensors) -> Tensors:
        """The task's outputs `{name: [rows, ...]}` for its inputs `{name: [rows, ...]}`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source, understood."""

    name: str  # for the store, unless --name says otherwise
    task: BuildTask
    reference: Reference
    graph: Callable[[int | None], onnx.ModelProto]  # opset (None: the default) -> the graph, its inputs and outputs those of the task
    simplify: Callable[[onnx.ModelProto], onnx.ModelProto] = simplify  # the graph, smaller and faster, answering the same
    # Put behind the graph after it was converted, in fp32 whatever the precision; what the graph does after its last learned operator
    # stays fp32 as well then. For detectors, whose coordinates an int8 or fp16 would round to the next pixel or the next ten.
    tail: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None
    source: Source
    packages: tuple[str, ...]  # whose versions belong in the manifest
    facts: Mapping[str, Any]  # the sections of the manifest that the task reads: labels, preprocessing, ...
    files: Mapping[str, bytes] = field(default_factory=dict)  # what the package holds beside its ONNX files, by name
    samples: Samples | None = None  # those that the source brings itself; --calibration replaces them
    max_batch: int | None = None  # the only batch that the graph takes, where it fixes one
    batch_note: str = ""  # why
    note: str = ""  # what the build's first line says of it
