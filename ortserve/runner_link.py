"""One stream to a runner with the places of the rows on it: what becomes of each row, and how full the runner's queue is known to be."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ortserve import frames, refusals
from ortserve.errors import FrameError, OrtServeError
from ortserve.runner_stream import CONNECT_S, Address, RunnerStream

if TYPE_CHECKING:
    from ortserve.session import Tensors

logger = logging.getLogger("ortserve.runner_link")

# What is known of the runner's queue is believed this long: a batch on a GPU ends sooner, older news of a full queue would refuse in vain.
FRESH_S = 0.05


class RemotePlace:
    """`ortserve.engine.Place` of a row on a stream."""

    def __init__(self, link: Link, number: int, deadline: float) -> None:
        self.inference_s = 0.0
        self._link = link
        self._number = number
        self._deadline = deadline
        self._error: OrtServeError | None = None  # a refusal that came before the row was sent
        self._answered: asyncio.Future[Tensors] | None = None  # from infer on

    def __enter__(self) -> RemotePlace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._link.leave(self._number)

    async def infer(self, inputs: Tensors) -> Tensors:
        """As `Place.infer`. Raises DeadlineExceeded at the deadline whatever the runner does, RunnerUnavailable where it is lost."""
        if self._error is not None:
            raise self._error
        if self._answered is not None or not self._link.holds(self._number):
            raise RuntimeError("infer was called twice or after the place was left: admit again")
        loop = asyncio.get_running_loop()
        self._answered = loop.create_future()
        timer = None
        try:
            self._link.send(frames.Row(self._number, inputs))
            timer = loop.call_later(self._deadline - time.monotonic(), self.refuse, refusals.late())
            return await self._answered
        finally:
            if timer is not None:
                timer.cancel()
            self._link.leave(self._number)

    def answer(self, inference_s: float, outputs: Tensors) -> None:
        """The runner's answer."""
        self.inference_s = inference_s
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(outputs)

    def refuse(self, error: OrtServeError) -> None:
        """The runner's refusal, or what became of the stream or of the time."""
        self._error = error
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)


class Link:
    """One stream and the places of the rows on it."""

    def __init__(self) -> None:
        self.facts: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()  # the runner's first frame
        self.over = asyncio.Event()  # lost, or its runner is going: a new one is wanted
        self.lost = False
        self.idle = asyncio.Event()  # no row is on it
        self.idle.set()
        self._stream: RunnerStream | None = None
        self._ending = False
        self._places: dict[int, RemotePlace] = {}
        self._next = 1
        self._told_rows, self._told_drain_s, self._told_at = 0, 1.0, -FRESH_S
        self._since, self._since_at = 0, -FRESH_S  # rows reserved since the runner told how many wait, and not left; when the first of them

    @classmethod
    async def open(cls, address: Address) -> Link:
        """A link whose runner has said what it runs. Raises OSError where there is none, FrameError where it is no runner."""
        link = cls()
        try:
            async with asyncio.timeout(CONNECT_S):
                link._stream = await RunnerStream.open(address, link._heard, link._ended)
                await link.facts
        except TimeoutError:
            link.end()
            raise FrameError(f"it said nothing for {CONNECT_S:g} s") from None
        except BaseException:
            link.end()
            raise
        return link

    def waiting(self) -> int:
        """Rows that wait at the runner, as far as is known here: rather too few than too many, since the runner looks again."""
        now = time.monotonic()
        told = self._told_rows if now - self._told_at < FRESH_S else 0
        return told + (self._since if now - self._since_at < FRESH_S else 0)

    @property
    def drain_s(self) -> float:
        """Seconds the runner's queue needs to drain, as it last said."""
        return self._told_drain_s

    def reserve(self, rows: int, deadline: float) -> list[RemotePlace]:
        """Places for so many rows, asked for at once."""
        first, self._next = self._next, self._next + rows
        self.send(frames.Reserve(first, rows, deadline - time.monotonic()))
        places = [RemotePlace(self, number, deadline) for number in range(first, first + rows)]
        self._places.update(zip(range(first, first + rows), places, strict=True))
        now = time.monotonic()
        if not self._since or now - self._since_at >= FRESH_S:  # older ones have started, or the runner says it soon
            self._since, self._since_at = 0, now
        self._since += rows
        self.idle.clear()
        return places

    def send(self, frame: frames.Frame) -> None:
        """Send a frame of a row."""
        assert self._stream is not None  # open when its first place was taken
        self._stream.put(frame)

    def holds(self, number: int) -> bool:
        """Whether that row still has its place."""
        return number in self._places

    def leave(self, number: int) -> None:
        """Nobody waits for that row any more."""
        if self._places.pop(number, None) is not None:
            self._since = max(0, self._since - 1)
            self.send(frames.Leave(number))
            self._settle()

    def end(self) -> None:
        """Close the stream, once what was put is sent."""
        self._ending = True
        if self._stream is not None:
            self._stream.end()

    def _settle(self) -> None:
        if not self._places:
            self.idle.set()

    def _heard(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Answer(number, inference_s, outputs):
                if (place := self._places.pop(number, None)) is not None:
                    place.answer(inference_s, outputs)
                    self._settle()
            case frames.Refusal(number, error):
                if (place := self._places.pop(number, None)) is not None:
                    place.refuse(error)
                    self._settle()
            case frames.State(rows_waiting, drain_s):
                self._told_rows, self._told_drain_s, self._told_at = rows_waiting, drain_s, time.monotonic()
                self._since = 0
            case frames.Hello(facts):
                if self.facts.done():
                    raise FrameError("expected one first frame, got two")
                self.facts.set_result(facts)
            case frames.Going():
                self.over.set()
            case _:
                raise FrameError(f"expected a frame of a runner, got {type(frame).__name__}")

    def _ended(self, why: str) -> None:
        self.lost = True
        if not self.facts.done():
            self.facts.set_exception(FrameError(why))
            self.facts.exception()  # whoever waited may have gone: then it is nobody's
        elif not self._ending:
            logger.error("the runner was lost, with %d rows: %s", len(self._places), why)
        places, self._places = self._places, {}
        for place in places.values():
            place.refuse(refusals.no_runner())
        self._settle()
        self.over.set()
