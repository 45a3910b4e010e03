"""The adaptive batcher: requests of any number of rows in, batches that grow with the load out, every answer to its own caller.

    admit ──> Ticket ──infer──> FairQueue ──pump──> a free slot: a thread runs one Batch ──> finished ──> pump, then the callers wake

- Work-conserving: a free slot and a non-empty queue start a batch in the same turn of the event loop. While all slots are busy the
  queue grows and with it the next batch; that is the whole adaptation. `max_queue_delay_ms` may wait for more rows.
- Bounded: a place in the queue is held from `admit`, before anything is decoded, until the row starts; refusing is cheap.
- Rows of texts are ragged: those of like length (one bucket) go together, padded to the longest of them; the padding is told.
- A batch that fails is run again, each request apart, so that a poisoned one fails alone. Apart and not by halves: it computes every row
  once more however many are bad, halving computes each twice.

All but `Batch.run` happens in the event loop's thread, so there is no lock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Literal, Protocol

from ortserve import refusals
from ortserve.batch import Batch, Part, Request, kind_of, lengths
from ortserve.errors import InferenceError, OrtServeError, PayloadTooLarge, RequestError
from ortserve.execution import Batching
from ortserve.fair_queue import FairQueue
from ortserve.session import Runs, Tensors
from ortserve.slots import Slots

log = logging.getLogger("ortserve.batching")

_LEARNING_RATE = 0.2  # weight of the newest batch in the estimate of seconds per row: follows a change within some ten batches


class Observer(Protocol):
    """What the batcher tells of itself, for metrics; called in the event loop's thread."""

    def queue_changed(self, rows: int) -> None:
        """`rows` are admitted and not yet started."""

    def batch_started(self, rows: int, in_flight: int, queue_s: Sequence[float]) -> None:
        """A batch of `rows` started; one time from `infer` to here for each part in it, none where a failed batch runs again."""

    def batch_padded(self, tokens: int, padding_tokens: int) -> None:
        """A batch of ragged rows started: what of it are the rows' own tokens, and what was put behind them."""

    def batch_finished(self, rows: int, in_flight: int, inference_s: float) -> None:
        """A batch ended, well or not, after `inference_s` in the session."""


class Ticket:
    """A place in the queue for `rows` rows until `deadline` (`time.monotonic()` seconds). A context manager: leaving gives it back."""

    def __init__(self, batcher: Batcher, rows: int, deadline: float) -> None:
        self.rows = rows
        self.deadline = deadline
        self._batcher = batcher
        self._request: Request | None = None  # from infer on
        self._left = False

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._batcher._leave(self)

    def remaining_s(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()

    @property
    def inference_s(self) -> float:
        """Seconds the session took for the batches with this ticket's rows; 0 before there is an answer."""
        return 0.0 if self._request is None else self._request.inference_s

    async def infer(self, inputs: Tensors) -> Tensors:
        """Outputs `{name: [rows, ...]}` for inputs `{name: [rows, ...]}`, rows in order. Once for a ticket.

        The inputs must not change until the answer is there. Raises ShapeMismatch where the inputs have not the admitted number of rows
        or the session refuses them, DeadlineExceeded at the deadline whatever the rows are doing then, InferenceError where the session
        fails on these rows alone, ShuttingDown.
        """
        if self._batcher._abandoned:
            raise refusals.stopping()
        if self._request is not None or self._left:
            raise RuntimeError("infer was called twice or after the ticket was left: admit again")
        try:
            return await self._batcher._answer(self, inputs)
        finally:
            self._batcher._leave(self)


class Batcher:
    """Gathers requests into batches for `runs`. Needs no event loop to be made; then belongs to the one that admits first."""

    def __init__(self, runs: Runs, settings: Batching, *, ragged: Collection[str] = (), observer: Observer | None = None) -> None:
        """`ragged` names the inputs of `runs` whose second dimension is free: their rows are padded to stack."""
        self._runs = runs
        self._settings = settings
        self._ragged = frozenset(ragged)
        self._observer = observer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots: Slots | None = None
        self._open: set[Ticket] = set()  # admitted, neither answered nor left
        self._queue = FairQueue(settings.max_batch_size, settings.max_batch_tokens)  # of these, what has its inputs and rows to start
        self._apart: deque[Part] = deque()  # of failed batches, each to run again alone
        self._rows_waiting = 0
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

    @property
    def drain_s(self) -> float:
        """Seconds the queue needs to drain, by recent batches; 1 before the first."""
        return self._rows_waiting * self._row_s / self._settings.max_in_flight if self._row_s is not None else 1.0

    def admit(self, rows: int, *, deadline: float) -> Ticket:
        """A ticket for `rows` rows to be answered before `deadline` (`time.monotonic()` seconds). Call it in the event loop's thread.

        Raises as `expect_room`.
        """
        self.expect_room(rows, deadline=deadline)
        self._bind(asyncio.get_running_loop())
        ticket = Ticket(self, rows, deadline)
        self._open.add(ticket)
        self._count(waiting=rows)
        return ticket

    def expect_room(self, rows: int, *, deadline: float, ahead: int = 0) -> None:
        """Nothing, where `rows` rows could be admitted now and those before them leave time for an answer before `deadline`.

        `ahead`: rows that are not admitted yet and have their places before these.

        Raises QueueFull, with the time the queue needs to drain; ShuttingDown; PayloadTooLarge where `rows` can never fit.
        """
        limit = self._settings.max_queue_size
        if self._closing:
            raise refusals.stopping()
        if rows < 1:
            raise RequestError(f"expected 1 row or more in a request, got {rows}: send at least one")
        if rows > limit:
            raise PayloadTooLarge(f"expected at most {limit} rows in one request, got {rows}: send fewer at a time")
        if self._rows_waiting + ahead + rows > limit:
            raise refusals.queue_full(rows, limit, self._rows_waiting + ahead, self.drain_s)
        if self._rows_waiting and self._row_s is not None:
            refusals.expect_time(deadline, self.drain_s)

    async def close(self, *, drain: bool = True) -> None:
        """Nothing, once every admitted request is answered (`drain`) or failed with ShuttingDown, and the threads have ended.

        May be called again, also to give up draining. A batch that runs is waited for: a session cannot be interrupted.
        """
        self._closing = True
        if not drain:
            self._abandoned = True
            for ticket in list(self._open):
                if ticket._request is not None:
                    self._fail(ticket._request, refusals.stopping())
                self._leave(ticket)
        self._pump()
        self._settle()
        await self._idle.wait()
        if self._slots is not None:
            self._slots.close()
            self._slots = None

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            self._slots = Slots(self._runs, self._settings.max_in_flight, loop, self._finished)
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError("a batcher belongs to the event loop that used it first: make one for each loop")

    async def _answer(self, ticket: Ticket, inputs: Tensors) -> Tensors:
        length, bound = lengths(inputs, self._ragged, self._settings.sequence_buckets) if self._ragged else (0, 0)
        kind = kind_of(inputs, ticket.rows, self._ragged, bound)
        now = time.monotonic()
        assert self._loop is not None  # bound when the ticket was admitted
        done: asyncio.Future[None] = self._loop.create_future()
        request = Request(inputs, ticket.rows, ticket.deadline, now, kind, done, self._settings.max_batch_size, self._ragged, length, bound)
        ticket._request = request
        self._queue.append(request)
        if not self._pump_scheduled and self._in_flight < self._settings.max_in_flight:
            self._pump_scheduled = True  # not at once: requests that become ready in one turn of the loop share a batch
            self._loop.call_soon(self._pump)
        timer = self._loop.call_later(ticket.deadline - now, self._expire, request)
        try:
            await done
        finally:
            timer.cancel()
        return request.outputs()

    def _pump(self) -> None:
        """Start batches while there is a free slot and something to run."""
        self._pump_scheduled = False
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        slots = self._settings.max_in_flight
        while self._apart and self._in_flight < slots:
            part = self._apart.popleft()
            if not part.request.done.done():
                self._start([part], queue_s=())
        if not self._queue or self._in_flight == slots:
            return
        now = time.monotonic()
        for request in [request for request in self._queue if request.deadline <= now]:
            self._expire(request)  # its timer is due but has not had its turn
        if self._loop is not None and (wait_s := self._may_wait_s(now)) > 0:
            self._patience = self._loop.call_later(wait_s, self._pump)
            return
        while self._queue and self._in_flight < slots:
            parts = self._queue.take(slots - self._in_flight)
            self._start(parts, queue_s=[now - part.request.ready_at for part in parts])
            self._count(waiting=-sum(part.rows for part in parts))

    def _may_wait_s(self, now: float) -> float:
        """How long a batch may wait for more rows: never when it is full, never so long that a request in it comes too late."""
        delay_s = self._settings.max_queue_delay_ms / 1000
        if not delay_s or self._closing or not self._queue or self._queue.rows >= self._settings.max_batch_size:
            return 0.0
        run_s = 2 * (self._row_s or 0.0) * self._settings.max_batch_size  # twice: the estimate is a mean, and a deadline is not
        return min(min(request.ready_at + delay_s, request.deadline - run_s) for request in self._queue) - now

    def _start(self, parts: Sequence[Part], *, queue_s: Sequence[float]) -> None:
        assert self._slots is not None  # closed only when nothing is left to start
        batch = Batch(parts, self._settings.buckets)
        self._slots.run(batch)
        self._in_flight += 1
        self._tell("batch_started", batch.rows, self._in_flight, queue_s)
        if batch.length:
            self._tell("batch_padded", batch.tokens, batch.padding_tokens)

    def _finished(self, batch: Batch) -> None:
        """A thread is done with a batch: first the next one starts, then the callers wake, then the observer hears of it."""
        self._in_flight -= 1
        error, batch.error = batch.error, None  # an error refers to its frames, and those to the batch and all its tensors
        if error is not None:
            self._failed(batch, error)
        self._pump()
        if error is None:
            batch.hand_out()
            row_s = batch.inference_s / batch.rows
            self._row_s = row_s if self._row_s is None else self._row_s + _LEARNING_RATE * (row_s - self._row_s)
        assert self._loop is not None  # bound when they were admitted
        self._loop.call_soon(self._tell_finished, batch.rows, batch.inference_s)  # behind the callers
        self._settle()

    def _tell_finished(self, rows: int, inference_s: float) -> None:
        """With what is in flight by then: a caller that woke may have started the next batch."""
        self._tell("batch_finished", rows, self._in_flight, inference_s)

    def _failed(self, batch: Batch, error: BaseException) -> None:
        request = batch.parts[0].request
        if len(batch.parts) > 1:
            log.error("a batch of %d rows failed, its %d parts run again apart", batch.rows, len(batch.parts), exc_info=error)
            self._apart.extend(batch.parts)
        elif isinstance(error, RequestError):  # the session refuses these inputs, in words for the caller
            self._fail(request, error)
        else:
            log.error("a request of %d rows failed alone", batch.rows, exc_info=error)
            message = "expected the model to answer, it failed on this request's rows: send others; the log of the service has the reason"
            self._fail(request, InferenceError(message))

    def _expire(self, request: Request) -> None:
        self._fail(request, refusals.late())

    def _fail(self, request: Request, error: OrtServeError) -> None:
        if not request.done.done():
            request.done.set_exception(error)
        self._count(waiting=-self._queue.remove(request))

    def _leave(self, ticket: Ticket) -> None:
        """Give back the places of the ticket's rows that have not started; they never will."""
        if ticket not in self._open:
            return
        ticket._left = True
        self._open.remove(ticket)
        if ticket._request is None:
            self._count(waiting=-ticket.rows)
        else:
            ticket._request.done.cancel()  # no effect where it is done; else whoever waits was left behind
            self._count(waiting=-self._queue.remove(ticket._request))
        self._settle()

    def _settle(self) -> None:
        if self._closing and not self._open and not self._in_flight:
            self._idle.set()

    def _count(self, *, waiting: int) -> None:
        if waiting:
            self._rows_waiting += waiting
            self._tell("queue_changed", self._rows_waiting)

    def _tell(self, event: Literal["queue_changed", "batch_started", "batch_padded", "batch_finished"], *values: object) -> None:
        if self._observer is not None:
            try:
                getattr(self._observer, event)(*values)
            except Exception:
                log.exception("the observer of the batcher failed at %s; batches go on", event)
