"""JPEGs decoded by threads that never want the interpreter: the event loop's end of `native/threads.c`."""

from __future__ import annotations

import asyncio
import ctypes
import os
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import numpy as np
from numpy.typing import NDArray

from ortserve import compiled, refusals
from ortserve.jpeg import ARGUMENTS, Job

_Waiting = tuple["asyncio.Future[NDArray[np.uint8] | None]", Job]

# Jobs that a thread is given ahead: so many that it does not wait for a busy event loop, so few that the pixels' memory stays in the cache.
# A turn of that loop near capacity takes longer than eight small JPEGs: of 8 a thread had none for a fifteenth of the time, while hundreds
# waited, and a tenth fewer were answered. Of 64 it runs ahead of the loop, too: a twentieth fewer of 32 callers' requests.
AHEAD = 24
# Where the loop is pressed: past capacity by far it needs the CPU of decoding. Of 24 the median refusal took 0.07 and 0.2 s, of 8 0.01.
AHEAD_PRESSED = 8


class DecodingThreads:
    """`threads` of them, for one event loop at a time. Raises OSError where the system has no more."""

    def __init__(self, threads: int, *, pressed: Callable[[], bool] = lambda: False) -> None:
        """`pressed` says whether the event loop has more to do than decoding may keep it from."""
        path = str(compiled.compiled_file())
        # PyDLL keeps the interpreter during a call: each is over sooner than it would be back.
        quick, end = ctypes.PyDLL(path), ctypes.CDLL(path).ortserve_threads_close
        self._put, self._take = quick.ortserve_threads_put, quick.ortserve_threads_take
        self._put.argtypes = [ctypes.c_void_p, ctypes.c_uint64, *ARGUMENTS]
        self._take.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        end.argtypes, end.restype = [ctypes.c_void_p], None
        quick.ortserve_threads_open.restype = ctypes.c_void_p
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = quick.ortserve_threads_open(threads, self._event)
        if self._threads is None:
            os.close(self._event)
            raise OSError(f"the system has no room for {threads} more threads: allow this process more")
        # At the latest before the memory goes that they are at: when the process ends, too. A child has none of them.
        self._end = weakref.finalize(self, _end, end, self._threads, self._event)
        os.register_at_fork(after_in_child=self._end.detach)
        self._count, self._most = threads, threads * AHEAD
        self._pressed = pressed
        self._ids, self._ended = (ctypes.c_uint64 * self._most)(), (ctypes.c_int * self._most)()
        self._numbers = count()
        self._waiting: deque[_Waiting] = deque()
        self._given: dict[int, tuple[_Waiting, NDArray[np.uint8]]] = {}  # bytes and pixels are kept while a thread may be at them
        self._loop: asyncio.AbstractEventLoop | None = None

    @staticmethod
    def possible() -> bool:
        """Whether this system can wake an event loop for them: Linux can. What they call is to be compiled, too."""
        return hasattr(os, "eventfd")

    def run(self, job: Job) -> asyncio.Future[NDArray[np.uint8] | None]:
        """The pixels; None: the picture is Pillow's to decode, or to refuse. One that is cancelled before its turn is not decoded.

        Raises ShuttingDown once they are closed, MemoryError.
        """
        loop = asyncio.get_running_loop()
        if not self._end.alive:
            raise refusals.stopping()
        if self._loop is not loop:
            self._loop = loop
            loop.add_reader(self._event, self._look)
        future: asyncio.Future[NDArray[np.uint8] | None] = loop.create_future()
        self._waiting.append((future, job))
        self._give()
        return future

    def _give(self) -> None:
        most = self._count * (AHEAD_PRESSED if self._pressed() else AHEAD)
        while self._waiting and len(self._given) < most:
            future, job = self._waiting.popleft()
            if future.done():  # whoever asked has left
                continue
            try:
                number, pixels = next(self._numbers), job.room()
                if self._put(self._threads, number, *job.arguments(pixels)):
                    raise MemoryError("no memory for a job of decoding")
            except Exception as error:
                future.set_exception(error)
            else:
                self._given[number] = ((future, job), pixels)

    def _look(self) -> None:
        """Hand over what is done; the eventfd was written to."""
        with suppress(BlockingIOError):  # it was looked at already
            os.eventfd_read(self._event)
        taken = self._take(self._threads, self._ids, self._ended, self._most)
        done = [(*self._given.pop(number), ended) for number, ended in zip(self._ids[:taken], self._ended[:taken], strict=True)]
        for (future, job), pixels, ended in done:
            if future.done() or future.get_loop().is_closed():
                continue  # whoever asked has left
            try:
                if ended != compiled.DECLINED:
                    compiled.check(ended, job.upright, job.size, job.within, job.resampling)
            except (MemoryError, ValueError) as error:
                future.set_exception(error)
            else:
                future.set_result(None if ended == compiled.DECLINED else pixels)
        self._give()

    def close(self) -> None:
        """End the threads, each after the picture it is at; who still waits is told that the service stops."""
        if not self._end.alive:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._event)
        self._end()
        for future, _ in (*self._waiting, *(waiting for waiting, _ in self._given.values())):
            if not future.done() and not future.get_loop().is_closed():
                future.set_exception(refusals.stopping())
        self._waiting.clear()
        self._given.clear()


def _end(end: Callable[[int], None], threads: int, event: int) -> None:
    end(threads)
    os.close(event)
