"""A request for inference and its answer, whatever carried them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One tensor of a request: `data` has the shape and the dtype that the sender said."""

    name: str
    datatype: str  # the protocol's name
    data: NDArray[Any]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output that is wanted."""

    name: str
    binary: bool = False  # as bytes rather than as numbers of JSON; of no account to a transport that knows only bytes
    classes: int | None = None  # the best so many classes in place of the tensor


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Tensors for one model."""

    inputs: Sequence[InputTensor]
    outputs: Sequence[RequestedOutput] | None = None  # None: all there are
    binary: bool = False  # of outputs that are not named
    id: str | None = None
    within_s: float | None = None  # the sender's own limit on the time


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of an answer. `data` is an array of the datatype, or the strings of a BYTES tensor in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[Any] | list[bytes]
    binary: bool


@dataclass(frozen=True, slots=True)
class InferResponse:
    """A model's answer and where its time went, in seconds."""

    model: str
    version: str
    id: str | None
    outputs: Sequence[OutputTensor]
    queue_s: float
    inference_s: float
