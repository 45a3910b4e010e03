"""One batch: rows of several requests stacked, run once, cut apart again. Runs on a thread of the batcher; knows no event loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ortserve.session import Runs, Tensors

Owner = TypeVar("Owner")


@dataclass(slots=True, eq=False)
class Part(Generic[Owner]):
    """Rows `start` to `stop` of one request's inputs."""

    owner: Owner
    inputs: Tensors
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows of the request this part holds."""
        return self.stop - self.start


class Batch(Generic[Owner]):
    """Parts that stack (same names, dtypes and trailing shapes), run as `size` rows: their own and zeros up to a bucket."""

    def __init__(self, parts: Sequence[Part[Owner]], buckets: Sequence[int]) -> None:
        self.parts = parts
        self.rows = sum(part.rows for part in parts)
        self.size = next((bucket for bucket in buckets if bucket >= self.rows), self.rows)
        self.outputs: Tensors = {}
        self.error: BaseException | None = None
        self.inference_s = 0.0

    def run(self, runs: Runs) -> None:
        """Nothing; fills `outputs`, or `error` with whatever was raised: a thread that dies of an exception is a slot lost for good."""
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

    def answers(self) -> Iterator[tuple[Part[Owner], Tensors]]:
        """Each part with its own rows of the outputs, padding left out.

        The rows are views: nothing is copied on the event loop, and callers of one batch finish at about the same time, so that a
        one-row view keeps the other rows in memory hardly longer than their own callers do.
        """
        at = 0
        for part in self.parts:
            yield part, {name: tensor[at : at + part.rows] for name, tensor in self.outputs.items()}
            at += part.rows


def stack(parts: Sequence[Part[Owner]], size: int) -> Tensors:
    """`{name: [size, ...]}`: the parts' rows in order, then zeros. One part of just that size is handed on without a copy."""
    first = parts[0]
    padding = size - sum(part.rows for part in parts)
    if len(parts) == 1 and not padding:
        return {name: tensor[first.start : first.stop] for name, tensor in first.inputs.items()}
    stacked: Tensors = {}
    for name, tensor in first.inputs.items():
        pieces = [part.inputs[name][part.start : part.stop] for part in parts]
        if padding:
            pieces.append(np.zeros((padding, *tensor.shape[1:]), tensor.dtype))
        stacked[name] = np.concatenate(pieces)
    return stacked
