"""Threads that work for an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Threads:
    """`count` threads that call functions and hand what those return to the event loop that asked.

    Our own rather than an executor's, whose two futures, condition and callbacks for each call cost three times as much.
    """

    def __init__(self, count: int, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads = [threading.Thread(target=_work, args=(self._jobs,), name=f"{name}-{index}", daemon=True) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def run(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """What `function(*arguments)` returns or raises in one of the threads; one that is cancelled before its turn is not called."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, future, function, arguments))
        return future

    def close(self) -> None:
        """End the threads, once they have done what was asked."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        loop, future, function, arguments = job
        if not future.cancelled():
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as raised:  # a thread that dies of it would be one fewer for good
                error = raised
            try:
                loop.call_soon_threadsafe(_hand_over, future, result, error)
            except RuntimeError:  # the loop was closed: nobody waits for an answer
                return
            del result, error
        del job, loop, future, function, arguments  # they would keep a picture until the next one comes


def _hand_over(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return  # whoever asked has left
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
