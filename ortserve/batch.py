"""One batch: rows of several requests stacked, run once and cut apart again. Nothing here waits or schedules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.errors import ShapeMismatch
from ortserve.refusals import unequal_rows
from ortserve.session import Runs, Tensors


@dataclass(slots=True, eq=False)
class Request:
    """Inputs of `rows` rows and what became of them. Only the event loop's thread changes it."""

    inputs: Tensors
    rows: int
    deadline: float  # time.monotonic() seconds, as ready_at
    ready_at: float
    kind: object  # of kind_of: requests of one kind stack
    done: asyncio.Future[None]
    turn: int  # rows it may start before the requests behind it have their turn
    ragged: Collection[str] = ()  # names of its inputs whose second dimension may differ between requests that stack
    length: int = 0  # that dimension: tokens; 0 where nothing is ragged
    bound: int = 0  # of the bucket that length falls into
    started: int = 0  # rows handed to batches
    answered: int = 0
    inference_s: float = 0.0  # in the session, all batches together that had a part of it
    answers: list[tuple[int, Tensors]] = field(default_factory=list)  # first row and outputs of each part

    def outputs(self) -> Tensors:
        """`{name: [rows, ...]}` in order, once all rows are answered. Copies only where the request was split."""
        if len(self.answers) == 1:
            return self.answers[0][1]
        parts = [outputs for _, outputs in sorted(self.answers, key=lambda part: part[0])]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(slots=True, eq=False)
class Part:
    """Rows `start` to `stop` of a request."""

    request: Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows that is."""
        return self.stop - self.start


class Batch:
    """Parts of one kind, run as `size` rows: their own, and zeros up to the next bucket.

    Ragged rows are padded with zeros to the longest of them; to the bucket's bound where `buckets` ask for fixed shapes.
    """

    def __init__(self, parts: Sequence[Part], buckets: Sequence[int]) -> None:
        self.parts = parts
        self.rows = sum(part.rows for part in parts)
        self.size = next((bucket for bucket in buckets if bucket >= self.rows), self.rows)
        self.length = parts[0].request.bound if buckets else max(part.request.length for part in parts)
        self.tokens = sum(part.rows * part.request.length for part in parts)
        self.padding_tokens = self.size * self.length - self.tokens
        self.outputs: Tensors = {}
        self.error: BaseException | None = None
        self.inference_s = 0.0

    def run(self, runs: Runs) -> None:
        """Fill `outputs`, or `error` with whatever was raised: a thread that dies of an exception is a slot lost for good."""
        try:
            inputs = stack(self.parts, self.size, self.length)
            started = time.perf_counter()
            try:
                outputs = runs.run(inputs)
            finally:
                self.inference_s = time.perf_counter() - started
            for name, tensor in outputs.items():
                if tensor.shape[:1] != (self.size,):
                    raise ValueError(f"expected {self.size} rows in the output {name!r}, got the shape {tensor.shape}")
            self.outputs = outputs
        except BaseException as error:
            self.error = error

    def hand_out(self) -> None:
        """Give each request that still waits its rows, and wake those that have all; rows of padding go to nobody.

        The rows are views: nothing is copied in the event loop, and callers of one batch finish at about the same time, so that a
        one-row view keeps the other rows in memory hardly longer than their own callers do.
        """
        at = 0
        for part in self.parts:
            request = part.request
            if not request.done.done():
                request.answers.append((part.start, {name: tensor[at : at + part.rows] for name, tensor in self.outputs.items()}))
                request.answered += part.rows
                request.inference_s += self.inference_s
                if request.answered == request.rows:
                    request.done.set_result(None)
            at += part.rows


def stack(parts: Sequence[Part], size: int, length: int = 0) -> Tensors:
    """`{name: [size, ...]}`: the parts' rows in order, then zeros. One part of just that size is handed on without a copy.

    Where the parts are ragged, every row is padded with zeros to `length`.
    """
    first = parts[0]
    padding = size - sum(part.rows for part in parts)
    if length and (len(parts) > 1 or padding or first.request.length < length):
        return _stack_ragged(parts, size, length)
    if len(parts) == 1 and not padding:
        return {name: tensor[first.start : first.stop] for name, tensor in first.request.inputs.items()}
    return {name: _stack_even(parts, size, name) for name in first.request.inputs}


def _stack_even(parts: Sequence[Part], size: int, name: str) -> NDArray[Any]:
    pieces = [part.request.inputs[name][part.start : part.stop] for part in parts]
    if padding := size - sum(part.rows for part in parts):
        pieces.append(np.zeros((padding, *pieces[0].shape[1:]), pieces[0].dtype))
    return np.concatenate(pieces)


def _stack_ragged(parts: Sequence[Part], size: int, length: int) -> Tensors:
    """As `stack`. Each tensor is made once and filled: padding every row by itself and joining them then would copy twice."""
    stacked: Tensors = {}
    for name, tensor in parts[0].request.inputs.items():
        if name not in parts[0].request.ragged:
            stacked[name] = _stack_even(parts, size, name)
            continue
        filled = stacked[name] = np.zeros((size, length, *tensor.shape[2:]), tensor.dtype)
        at = 0
        for part in parts:
            filled[at : at + part.rows, : part.request.length] = part.request.inputs[name][part.start : part.stop]
            at += part.rows
    return stacked


def lengths(inputs: Tensors, ragged: Collection[str], buckets: Sequence[int]) -> tuple[int, int]:
    """The second dimension of the `ragged` tensors and the bound of the bucket it falls into: itself beyond the last. (0, 0) without any.

    Raises ShapeMismatch where they differ: their tokens belong together.
    """
    found = {inputs[name].shape[1] for name in ragged if name in inputs and inputs[name].ndim > 1}
    if len(found) > 1:
        raise ShapeMismatch(f"expected tensors of one length, got {', '.join(map(str, sorted(found)))}: send them token by token")
    length = found.pop() if found else 0
    return length, next((bound for bound in buckets if bound >= length), length) if length else 0


def kind_of(inputs: Tensors, rows: int, ragged: Collection[str] = (), bound: int = 0) -> object:
    """Names, dtypes and trailing shapes, equal for requests that stack: of a `ragged` tensor its length's `bound` in the length's place.

    Raises ShapeMismatch where a tensor has not `rows` rows.
    """
    for name, tensor in inputs.items():
        if tensor.shape[:1] != (rows,):
            raise unequal_rows(name, tensor.shape, rows)
    if not inputs:
        raise ShapeMismatch(f"expected tensors of {rows} rows, got none: send every input of the model")
    if not ragged:
        return frozenset((name, tensor.dtype, tensor.shape[1:]) for name, tensor in inputs.items())
    return frozenset(
        (name, tensor.dtype, (bound, *tensor.shape[2:]) if name in ragged else tensor.shape[1:]) for name, tensor in inputs.items()
    )
