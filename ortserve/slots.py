"""The threads that run batches: one for each batch that may be in flight, so that starting one is a single hop and never waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue

from ortserve.batch import Batch
from ortserve.session import Runs

Jobs = SimpleQueue[Batch | None]


class Slots:
    """`count` daemon threads that run batches on `runs` and report each to the event loop.

    The thread that was free last is taken first: batches that come one at a time all run on one thread, whose memory and CPU are warm.
    Our own rather than an executor's: nothing joins them at exit, so a session that hangs does not keep the process from ending.
    """

    def __init__(self, runs: Runs, count: int, loop: asyncio.AbstractEventLoop, finished: Callable[[Batch], None]) -> None:
        self._finished = finished
        self._free: list[Jobs] = [SimpleQueue() for _ in range(count)]
        self._threads = [
            threading.Thread(target=_work, args=(jobs, runs, loop, self._done), name=f"batch-{index}", daemon=True)
            for index, jobs in enumerate(self._free)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, batch: Batch) -> None:
        """Hand a batch to a free thread; `finished` is called with it in the event loop's thread, also when it failed."""
        self._free.pop().put(batch)

    def close(self) -> None:
        """End the threads. Call it when no batch runs."""
        for jobs in self._free:
            jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _done(self, jobs: Jobs, batch: Batch) -> None:
        self._free.append(jobs)
        self._finished(batch)


def _work(jobs: Jobs, runs: Runs, loop: asyncio.AbstractEventLoop, done: Callable[[Jobs, Batch], None]) -> None:
    while (batch := jobs.get()) is not None:
        batch.run(runs)
        try:
            loop.call_soon_threadsafe(done, jobs, batch)
        except RuntimeError:  # the loop was closed without the batcher: nobody waits for an answer
            return
        del batch  # it would keep its tensors until the next one comes
