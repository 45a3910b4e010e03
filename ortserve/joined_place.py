"""Places of single rows as one place of them all, for an engine that carries row by row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ortserve.refusals import unequal_rows

if TYPE_CHECKING:
    from ortserve.engine import Place
    from ortserve.session import Tensors


class JoinedPlace:
    """`ortserve.engine.Place` of as many rows as there are places; the first row that fails is the failure of all."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._stack = ExitStack()

    @property
    def inference_s(self) -> float:
        """Of the row that was in the session longest: rows of one batch each tell the whole of its time."""
        return max((place.inference_s for place in self._places), default=0.0)

    def __enter__(self) -> JoinedPlace:
        for place in self._places:
            self._stack.enter_context(place)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    async def infer(self, inputs: Tensors) -> Tensors:
        """As `Place.infer`, for inputs `{name: [rows, ...]}`."""
        rows = len(self._places)
        for name, tensor in inputs.items():
            if tensor.shape[:1] != (rows,):
                raise unequal_rows(name, tensor.shape, rows)
        tasks = [
            asyncio.ensure_future(place.infer({name: tensor[row : row + 1] for name, tensor in inputs.items()}))
            for row, place in enumerate(self._places)
        ]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
