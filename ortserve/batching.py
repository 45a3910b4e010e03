"""The adaptive batcher: requests of any number of rows in, batches that grow with the load out, every answer to its own caller.

    admit ──> Ticket ──infer──> ready queue ──pump──> a free slot: one thread runs one Batch ──> finished ──> the callers

- Work-conserving: a free slot and a non-empty queue start a batch in the same turn of the event loop. While all slots are busy the
  queue grows and with it the next batch; that is the whole adaptation. `max_queue_delay_ms` may wait for more rows.
- Fair: first in, first out. A request larger than a batch has turns of `max_batch_size` rows and goes to the end of the queue after each
  (round robin with a quantum: Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995), so that it costs those
  behind it one batch, not all of its own. With several slots free a batch takes its share, ceil(rows / free slots), and no more.
- Bounded: a place in the queue is held from `admit`, before anything is decoded, until the row starts; refusing is cheap.
- A batch that fails is run again, each request apart: one poisoned request fails alone. Apart, not by halves: it computes each row once
  more whatever number of them is bad, halving computes each row twice and more.

Everything but `Batch.run` happens in the event loop's thread, so there is no lock. Threads of our own rather than an executor: one hop
each way, and nothing joins them when the process must end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from ortserve.batch import Batch, Part
from ortserve.errors import (
    DeadlineExceeded,
    InferenceError,
    OrtServeError,
    PayloadTooLarge,
    QueueFull,
    RequestError,
    ShapeMismatch,
    ShuttingDown,
)
from ortserve.profile import Batching
from ortserve.session import Runs, Tensors

log = logging.getLogger("ortserve.batching")

_LEARNING_RATE = 0.2  # weight of the newest batch in the estimate of seconds per row: follows a change within some ten batches


class Observer(Protocol):
    """What the batcher tells of itself, for metrics; called in the event loop's thread."""

    def queue_changed(self, rows: int) -> None:
        """`rows` are admitted and not yet started."""

    def batch_started(self, rows: int, in_flight: int, queue_s: Sequence[float]) -> None:
        """A batch of `rows` started; one time from `infer` to here for each part in it, none where a failed batch runs again."""

    def batch_finished(self, rows: int, in_flight: int, inference_s: float) -> None:
        """A batch ended, well or not, after `inference_s` in the session."""


class Ticket:
    """A place in the queue for `rows` rows until `deadline` (`time.monotonic()` seconds). A context manager: leaving gives it back."""

    def __init__(self, batcher: Batcher, rows: int, deadline: float) -> None:
        self.rows = rows
        self.deadline = deadline
        self._batcher = batcher
        self._inputs: Tensors = {}
        self._kind: object = None  # names, dtypes and trailing shapes: only requests of one kind stack
        self._answer: asyncio.Future[None] | None = None
        self._ready_at = 0.0
        self._started = 0  # rows handed to batches, or given back
        self._turn = batcher.max_batch_size  # rows it may still start before others have their turn
        self._answered: list[tuple[int, Tensors]] = []
        self._unanswered = rows
        self._left = False

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._batcher._leave(self)

    def remaining_s(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()

    async def infer(self, inputs: Tensors) -> Tensors:
        """Outputs `{name: [rows, ...]}` for inputs `{name: [rows, ...]}`, rows in order; at most once for a ticket.

        The inputs must not change until the answer is there. Raises ShapeMismatch where the inputs have not the admitted number of rows
        or the session refuses them, DeadlineExceeded at the deadline whatever the rows are doing then, InferenceError where the session
        fails on these rows alone, ShuttingDown.
        """
        if self._answer is not None or self._left:
            raise RuntimeError("infer was called twice or after the ticket was left: admit again")
        self._kind = _kind_of(inputs, self.rows)
        self._inputs = inputs
        try:
            await self._batcher._enqueue(self)
        finally:
            self._batcher._leave(self)
        if len(self._answered) == 1:
            return self._answered[0][1]
        parts = [tensors for _, tensors in sorted(self._answered, key=lambda part: part[0])]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Batcher:
    """Gathers requests into batches for `runs`. Needs no event loop to be made; then belongs to the one that admits first."""

    def __init__(self, runs: Runs, settings: Batching, *, observer: Observer | None = None) -> None:
        self.max_batch_size = settings.max_batch_size
        self._runs = runs
        self._settings = settings
        self._observer = observer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[Batch[Ticket] | None] = SimpleQueue()
        self._open: set[Ticket] = set()  # admitted and neither answered nor left
        self._ready: deque[Ticket] = deque()  # have inputs and rows to start
        self._apart: deque[Part[Ticket]] = deque()  # of failed batches, each to run again alone
        self._rows_waiting = 0
        self._rows_ready = 0
        self._in_flight = 0
        self._row_s: float | None = None  # recent seconds in the session per row
        self._pump_scheduled = False
        self._patience: asyncio.TimerHandle | None = None
        self._closing = False
        self._abandoned = False
        self._idle = asyncio.Event()

    @property
    def rows_waiting(self) -> int:
        """Rows admitted and not yet started."""
        return self._rows_waiting

    @property
    def in_flight(self) -> int:
        """Batches running now."""
        return self._in_flight

    def admit(self, rows: int, *, deadline: float) -> Ticket:
        """A ticket for `rows` rows to be answered before `deadline` (`time.monotonic()` seconds). Call it in the event loop's thread.

        Raises QueueFull, with the time the queue needs to drain; ShuttingDown; PayloadTooLarge where `rows` can never fit.
        """
        limit = self._settings.max_queue_size
        if self._closing:
            raise ShuttingDown("expected a running service, it is stopping: send the request again, to another instance")
        if rows < 1:
            raise RequestError(f"expected 1 row or more in a request, got {rows}: send at least one")
        if rows > limit:
            raise PayloadTooLarge(f"expected at most {limit} rows in one request, got {rows}: send fewer at a time")
        if self._rows_waiting + rows > limit:
            drain_s = self._rows_waiting * self._row_s / self._settings.max_in_flight if self._row_s is not None else 1.0
            message = f"expected room for {rows} of {limit} rows, {self._rows_waiting} wait already: send it again later"
            raise QueueFull(message, retry_after_s=drain_s)
        self._bind(asyncio.get_running_loop())
        ticket = Ticket(self, rows, deadline)
        self._open.add(ticket)
        self._count(waiting=rows)
        return ticket

    async def close(self, *, drain: bool = True) -> None:
        """Nothing, once every admitted request is answered (`drain`) or failed with ShuttingDown, and the threads have ended.

        May be called again, also to give up draining. A batch that runs is waited for: a session cannot be interrupted.
        """
        self._closing = True
        if not drain:
            self._abandoned = True
            for ticket in list(self._open):
                self._fail(ticket, _stopping())
            self._open.clear()
        self._pump()
        self._settle()
        await self._idle.wait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is loop:
            return
        if self._loop is not None:
            raise RuntimeError("a batcher belongs to the event loop that used it first: make one for each loop")
        while len(self._threads) < self._settings.max_in_flight:
            name = f"batch-{len(self._threads)}"
            thread = threading.Thread(target=_work, args=(self._jobs, self._runs, loop, self._finished), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        self._loop = loop

    async def _enqueue(self, ticket: Ticket) -> None:
        """Nothing, once all rows of the ticket are answered."""
        assert self._loop is not None  # the ticket was admitted
        if self._abandoned:
            raise _stopping()
        if (remaining_s := ticket.remaining_s()) <= 0:
            raise _late()
        ticket._ready_at = time.monotonic()
        ticket._answer = self._loop.create_future()
        timer = self._loop.call_later(remaining_s, self._expire, ticket)
        self._ready.append(ticket)
        self._rows_ready += ticket.rows
        if not self._pump_scheduled and self._in_flight < self._settings.max_in_flight:
            self._pump_scheduled = True  # not at once: requests that become ready in one turn of the loop share a batch
            self._loop.call_soon(self._pump)
        try:
            await ticket._answer
        finally:
            timer.cancel()

    def _pump(self) -> None:
        """Start batches while there is a free slot and something to run."""
        self._pump_scheduled = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        slots = self._settings.max_in_flight
        while self._apart and self._in_flight < slots:
            part = self._apart.popleft()
            if _waits(part.owner):
                self._start([part], queue_s=())
        now = time.monotonic()
        if self._ready and self._in_flight < slots and (wait_s := self._may_wait_s(now)) > 0 and self._loop is not None:
            self._patience = self._loop.call_later(wait_s, self._pump)
            return
        while self._ready and self._in_flight < slots:
            if parts := self._take(now, free=slots - self._in_flight):
                self._start(parts, queue_s=[now - part.owner._ready_at for part in parts])

    def _may_wait_s(self, now: float) -> float:
        """How long a batch may wait for more rows: never when it is full, never so long that a request in it comes too late."""
        delay_s = self._settings.max_queue_delay_ms / 1000
        if not delay_s or self._closing or self._rows_ready >= self.max_batch_size:
            return 0.0
        run_s = (self._row_s or 0.0) * self.max_batch_size
        return min(min(ticket._ready_at + delay_s, ticket.deadline - run_s) for ticket in self._ready) - now

    def _take(self, now: float, *, free: int) -> list[Part[Ticket]]:
        """The parts of the next batch, of one kind: the share of one of `free` slots. Requests of another kind keep their place."""
        room = min(self.max_batch_size, -(-self._rows_ready // free))
        parts: list[Part[Ticket]] = []
        passed: list[Ticket] = []
        while room and self._ready:
            ticket = self._ready[0]
            if ticket.deadline <= now:  # its timer is due but has not had its turn
                self._expire(ticket)
                continue
            self._ready.popleft()
            if parts and ticket._kind != parts[0].owner._kind:
                passed.append(ticket)
                continue
            rows = min(room, ticket.rows - ticket._started, ticket._turn)
            parts.append(Part(ticket, ticket._inputs, ticket._started, ticket._started + rows))
            ticket._started += rows
            ticket._turn -= rows
            room -= rows
            if ticket._started < ticket.rows:
                if ticket._turn:
                    self._ready.appendleft(ticket)
                else:
                    ticket._turn = self.max_batch_size
                    self._ready.append(ticket)
        self._ready.extendleft(reversed(passed))
        rows = sum(part.rows for part in parts)
        self._rows_ready -= rows
        self._count(waiting=-rows)
        return parts

    def _start(self, parts: Sequence[Part[Ticket]], *, queue_s: Sequence[float]) -> None:
        batch = Batch(parts, self._settings.buckets)
        self._in_flight += 1
        self._jobs.put(batch)
        if self._observer is not None:
            self._tell(self._observer.batch_started, batch.rows, self._in_flight, queue_s)

    def _finished(self, batch: Batch[Ticket]) -> None:
        """A thread is done with a batch: first the next one starts, then the callers hear."""
        self._in_flight -= 1
        if batch.error is not None:
            self._failed(batch, batch.error)
        self._pump()
        for part, outputs in batch.answers() if batch.error is None else ():
            ticket = part.owner
            if _waits(ticket) and ticket._answer is not None:
                ticket._answered.append((part.start, outputs))
                ticket._unanswered -= part.rows
                if not ticket._unanswered:
                    ticket._answer.set_result(None)
        if batch.error is None:
            row_s = batch.inference_s / batch.rows
            self._row_s = row_s if self._row_s is None else self._row_s + _LEARNING_RATE * (row_s - self._row_s)
        if self._observer is not None:
            self._tell(self._observer.batch_finished, batch.rows, self._in_flight, batch.inference_s)
        self._settle()

    def _failed(self, batch: Batch[Ticket], error: BaseException) -> None:
        if len(batch.parts) > 1:
            log.error("a batch of %d rows failed, its %d parts run again apart", batch.rows, len(batch.parts), exc_info=error)
            self._apart.extend(batch.parts)
        elif isinstance(error, RequestError):  # the session refuses these inputs, in words for the caller
            self._fail(batch.parts[0].owner, error)
        else:
            log.error("a request of %d rows failed alone", batch.rows, exc_info=error)
            message = "expected the model to answer, it failed on this request's rows: send others; the log of the service has the reason"
            self._fail(batch.parts[0].owner, InferenceError(message))

    def _fail(self, ticket: Ticket, error: OrtServeError) -> None:
        if _waits(ticket) and ticket._answer is not None:
            ticket._answer.set_exception(error)
        self._withdraw(ticket)

    def _expire(self, ticket: Ticket) -> None:
        self._fail(ticket, _late())

    def _withdraw(self, ticket: Ticket) -> None:
        """Give back the places of the rows that have not started; they never will."""
        rows = ticket.rows - ticket._started
        ticket._inputs = {}
        if rows:
            ticket._started = ticket.rows
            if ticket._answer is not None:
                self._ready.remove(ticket)
                self._rows_ready -= rows
            self._count(waiting=-rows)

    def _leave(self, ticket: Ticket) -> None:
        ticket._left = True
        if ticket._answer is not None:
            ticket._answer.cancel()  # no effect where it is done; else whoever still waits was left behind
        self._withdraw(ticket)
        self._open.discard(ticket)
        self._settle()

    def _settle(self) -> None:
        if self._closing and not self._open and not self._in_flight:
            self._idle.set()

    def _count(self, *, waiting: int) -> None:
        if waiting:
            self._rows_waiting += waiting
            if self._observer is not None:
                self._tell(self._observer.queue_changed, self._rows_waiting)

    def _tell(self, event: Callable[..., None], *values: Any) -> None:
        try:
            event(*values)
        except Exception:
            log.exception("the observer of the batcher failed; batches go on")


def _work(
    jobs: SimpleQueue[Batch[Ticket] | None], runs: Runs, loop: asyncio.AbstractEventLoop, finished: Callable[[Batch[Ticket]], None]
) -> None:
    """The life of one slot's thread: run batches until None comes."""
    while (batch := jobs.get()) is not None:
        batch.run(runs)
        try:
            loop.call_soon_threadsafe(finished, batch)
        except RuntimeError:  # the loop was closed without the batcher: nobody waits for an answer
            return
        del batch  # it would keep its tensors until the next one comes


def _waits(ticket: Ticket) -> bool:
    """Whether somebody still waits for the ticket's answer."""
    return ticket._answer is not None and not ticket._answer.done()


def _kind_of(inputs: Tensors, rows: int) -> object:
    """Names, dtypes and trailing shapes, equal for requests that stack. Raises ShapeMismatch where a tensor has not `rows` rows."""
    for name, tensor in inputs.items():
        if tensor.shape[:1] != (rows,):
            raise ShapeMismatch(f"expected {rows} rows in {name!r}, got the shape {list(tensor.shape)}: send as many rows as were admitted")
    if not inputs:
        raise ShapeMismatch(f"expected tensors of {rows} rows, got none: send every input of the model")
    return frozenset((name, tensor.dtype, tensor.shape[1:]) for name, tensor in inputs.items())


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("expected an answer before the request's deadline, the service is too busy: send it later or allow more time")


def _stopping() -> ShuttingDown:
    return ShuttingDown("expected a running service, it is stopping: send the request again, to another instance")
