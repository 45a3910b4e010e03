"""A session that runs when a test says so, callers to keep a batcher busy, and an observer that takes notes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from ortserve.batching import Batcher
from ortserve.execution import Batching
from ortserve.session import Tensors

POISON = -1.0
FAR_S = 60.0


class Held:
    """A session that computes 10 x in the order given, each batch only when `release` allows it; a row of POISON makes it raise."""

    def __init__(self, *, held: bool = True) -> None:
        self.batches: list[list[float]] = []
        self.inputs: list[Tensors] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._gate: SimpleQueue[BaseException | None] | None = SimpleQueue() if held else None

    def release(self, batches: int = 1, error: BaseException | None = None) -> None:
        assert self._gate is not None
        for _ in range(batches):
            self._gate.put(error)

    def run(self, inputs: Tensors) -> Tensors:
        with self._lock:
            self.batches.append(inputs["x"][:, 0].tolist())
            self.inputs.append(inputs)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self._gate is not None and (error := self._gate.get(timeout=30)) is not None:
                raise error
            if (inputs["x"][:, 0] == POISON).any():
                raise ValueError("secret of the library")
            return {"y": inputs["x"] * 10}
        finally:
            with self._lock:
                self._now -= 1


class Notes:
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.started: list[tuple[int, int, int]] = []
        self.finished: list[tuple[int, int]] = []
        self.padded: list[tuple[int, int]] = []

    def queue_changed(self, rows: int) -> None:
        self.queue.append(rows)

    def batch_started(self, rows: int, in_flight: int, queue_s: Sequence[float]) -> None:
        assert all(wait_s >= 0 for wait_s in queue_s)
        self.started.append((rows, in_flight, len(queue_s)))

    def batch_padded(self, tokens: int, padding_tokens: int) -> None:
        self.padded.append((tokens, padding_tokens))

    def batch_finished(self, rows: int, in_flight: int, inference_s: float) -> None:
        assert inference_s >= 0
        self.finished.append((rows, in_flight))


def rows(*values: float, width: int = 2) -> Tensors:
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


def values(outputs: Tensors) -> list[float]:
    return outputs["y"][:, 0].tolist()  # type: ignore[no-any-return]


def settings(**changed: Any) -> Batching:
    return Batching(**{"max_batch_size": 4, "max_queue_size": 64, **changed})


async def ask(batcher: Batcher, inputs: Tensors, *, within_s: float = FAR_S) -> list[float]:
    with batcher.admit(len(inputs["x"]), deadline=time.monotonic() + within_s) as ticket:
        return values(await ticket.infer(inputs))


def asking(batcher: Batcher, *requests: Tensors) -> list[asyncio.Task[list[float]]]:
    return [asyncio.create_task(ask(batcher, inputs)) for inputs in requests]


async def turns(count: int = 5) -> None:
    """Let the event loop do what it can do without a batch finishing."""
    for _ in range(count):
        await asyncio.sleep(0)


def skip(seconds: float) -> None:
    """Put the running loop's clock forward: every timer up to then is due, however short the real time."""
    loop = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(limited())
