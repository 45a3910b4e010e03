"""Threads that work for an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]
_Jobs = SimpleQueue[_Job | None]

# A job this long is worth a thread more. One that is shorter is not, where there are as many threads as CPUs already: they would wait for
# the interpreter and for one another. A photograph of some 1.5 megapixels takes as long to decode.
LONG_S = 0.005


class Threads:
    """`count` threads that call functions and hand what those return to the event loop that asked; `on_call` more while that takes long.

    Our own rather than an executor's, whose two futures, condition and callbacks for each call cost three times as much.
    """

    def __init__(self, count: int, name: str, *, on_call: int = 0) -> None:
        self._jobs: _Jobs = SimpleQueue()
        self._calls: SimpleQueue[bool] = SimpleQueue()  # for those on call: come, or end
        self._since = [inf] * count  # when each thread began what it does, `time.monotonic()` seconds
        self._on_call = on_call
        self._looking: asyncio.AbstractEventLoop | None = None  # that will look whether more threads are wanted
        named = [(_work, (self._jobs, self._since, index)) for index in range(count)] + [(_help, (self._jobs, self._calls))] * on_call
        self._threads = [
            threading.Thread(target=target, args=arguments, name=f"{name}-{index}", daemon=True)
            for index, (target, arguments) in enumerate(named)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """What `function(*arguments)` returns or raises in one of the threads; one that is cancelled before its turn is not called."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, future, function, arguments))
        if self._on_call and self._looking is not loop:
            self._looking = loop
            loop.call_later(LONG_S, self._look, loop)
        return future

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call one more where jobs wait and every thread has been at its own for long; look again while jobs wait."""
        self._looking = None
        if self._jobs.empty():
            return
        if max(self._since) <= time.monotonic() - LONG_S and self._calls.empty():
            self._calls.put(True)
        self._looking = loop
        loop.call_later(LONG_S, self._look, loop)

    def close(self) -> None:
        """End the threads, once they have done what was asked."""
        for _ in self._since:
            self._jobs.put(None)
        for _ in range(self._on_call):
            self._calls.put(False)
        for thread in self._threads:
            thread.join()


def _work(jobs: _Jobs, since: list[float], index: int) -> None:
    while (job := jobs.get()) is not None:
        since[index] = time.monotonic()
        _do(*job)
        since[index] = inf
        del job  # it would keep a picture until the next one comes


def _help(jobs: _Jobs, calls: SimpleQueue[bool]) -> None:
    """One job for each call, and then the next ones for as long as they are long."""
    while calls.get():
        used_s = inf
        while used_s > LONG_S:
            try:
                job = jobs.get_nowait()
            except Empty:
                break
            if job is None:  # for one of the others
                jobs.put(None)
                break
            began = time.thread_time()  # not the clock's: a thread that waits for its turn is not at work
            _do(*job)
            used_s = time.thread_time() - began
            del job


def _do(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    result, error = None, None
    try:
        result = function(*arguments)
    except BaseException as raised:  # a thread that dies of it would be one fewer for good
        error = raised
    try:
        loop.call_soon_threadsafe(_hand_over, future, result, error)
    except RuntimeError:
        return  # the loop was closed: nobody waits for an answer


def _hand_over(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return  # whoever asked has left
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
