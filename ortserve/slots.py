"""The threads that run batches: one for each batch that may be in flight, so that starting one is a single hop and never waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue

from ortserve.batch import Batch
from ortserve.session import Runs


class Slots:
    """`count` daemon threads that run batches on `runs` and report each to the event loop.

    Our own rather than an executor's: nothing joins them at exit, so a session that hangs does not keep the process from ending.
    """

    def __init__(self, runs: Runs, count: int, loop: asyncio.AbstractEventLoop, finished: Callable[[Batch], None]) -> None:
        self._jobs: SimpleQueue[Batch | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._jobs, runs, loop, finished), name=f"batch-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, batch: Batch) -> None:
        """Hand a batch to a thread; `finished` is called with it in the event loop's thread, also when it failed."""
        self._jobs.put(batch)

    def close(self) -> None:
        """End the threads. Call it when no batch runs: it waits for those that do."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


def _work(jobs: SimpleQueue[Batch | None], runs: Runs, loop: asyncio.AbstractEventLoop, finished: Callable[[Batch], None]) -> None:
    while (batch := jobs.get()) is not None:
        batch.run(runs)
        try:
            loop.call_soon_threadsafe(finished, batch)
        except RuntimeError:  # the loop was closed without the batcher: nobody waits for an answer
            return
        del batch  # it would keep its tensors until the next one comes
