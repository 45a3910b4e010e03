"""One batch: rows of several requests stacked, run once and cut apart again. Nothing here waits or schedules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ortserve.errors import ShapeMismatch
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
    """Parts of one kind, run as `size` rows: their own, and zeros up to the next bucket."""

    def __init__(self, parts: Sequence[Part], buckets: Sequence[int]) -> None:
        self.parts = parts
        self.rows = sum(part.rows for part in parts)
        self.size = next((bucket for bucket in buckets if bucket >= self.rows), self.rows)
        self.outputs: Tensors = {}
        self.error: BaseException | None = None
        self.inference_s = 0.0

    def run(self, runs: Runs) -> None:
        """Fill `outputs`, or `error` with whatever was raised: a thread that dies of an exception is a slot lost for good."""
        try:
            inputs = stack(self.parts, self.size)
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


def stack(parts: Sequence[Part], size: int) -> Tensors:
    """`{name: [size, ...]}`: the parts' rows in order, then zeros. One part of just that size is handed on without a copy."""
    first = parts[0]
    padding = size - sum(part.rows for part in parts)
    if len(parts) == 1 and not padding:
        return {name: tensor[first.start : first.stop] for name, tensor in first.request.inputs.items()}
    stacked: Tensors = {}
    for name, tensor in first.request.inputs.items():
        pieces = [part.request.inputs[name][part.start : part.stop] for part in parts]
        if padding:
            pieces.append(np.zeros((padding, *tensor.shape[1:]), tensor.dtype))
        stacked[name] = np.concatenate(pieces)
    return stacked


def kind_of(inputs: Tensors, rows: int) -> object:
    """Names, dtypes and trailing shapes, equal for requests that stack. Raises ShapeMismatch where a tensor has not `rows` rows."""
    for name, tensor in inputs.items():
        if tensor.shape[:1] != (rows,):
            raise ShapeMismatch(f"expected {rows} rows in {name!r}, got the shape {list(tensor.shape)}: send as many rows as were admitted")
    if not inputs:
        raise ShapeMismatch(f"expected tensors of {rows} rows, got none: send every input of the model")
    return frozenset((name, tensor.dtype, tensor.shape[1:]) for name, tensor in inputs.items())
