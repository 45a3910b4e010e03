"""The engine in another process: rows go to the runner over one stream and come back as they are ready.

A place is taken here and asked for there at once, before anything is decoded; only a refusal is answered. While the queue was full a
moment ago, nobody is asked: the refusal costs microseconds, as in one process.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ortserve import frames, refusals
from ortserve.errors import FrameError, OrtServeError
from ortserve.profile import Batching
from ortserve.runner_stream import CONNECT_S, Address, RunnerStream

if TYPE_CHECKING:
    from ortserve.session import Tensors

logger = logging.getLogger("ortserve.remote_engine")

FIRST_PAUSE_S = 0.05  # before the second attempt to reach the runner; each is twice the one before
LONGEST_PAUSE_S = 1.0  # a runner that is back is found within about a second
SAID_EVERY_S = 10.0  # how often a start says that it still waits
GOING_S = 5.0  # a runner that is about to end is used so long while no other is found; then it is let go, or it would never end
CLOSE_S = 1.0  # for what was put to be sent before this process ends
# What is known of the runner's queue is believed this long: a batch on a GPU ends sooner, older news of a full queue would refuse in vain.
FRESH_S = 0.05


class RemotePlace:
    """`ortserve.engine.Place` of a row on a stream."""

    def __init__(self, link: _Link, number: int, deadline: float) -> None:
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


class _Link:
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
    async def open(cls, address: Address) -> _Link:
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


class RemoteEngine:
    """`ortserve.engine.Engine` of a runner at an address. It keeps one stream to it, and looks for the next one when it ends."""

    def __init__(self, address: Address, expected: Mapping[str, Any]) -> None:
        """`expected` is what the runner must say it runs: protocol, model, version and the sha256 of each precision."""
        self._address = address
        self._expected = expected
        self._facts: Mapping[str, Any] = {}
        self._batching = Batching()
        self._link: _Link | None = None
        self._links: set[_Link] = set()  # with those whose runner is going, until their rows are answered
        self._keeper: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()  # kept, or they would be collected
        self._linked = asyncio.Event()
        self._staying = False
        self._closing = False

    @property
    def batching(self) -> Batching:
        """The runner's."""
        return self._batching

    @property
    def available(self) -> bool:
        """Whether there is a stream to a runner that runs this model."""
        return self._link is not None and not self._link.lost

    def facts(self) -> Mapping[str, Any]:
        """The runner's."""
        return self._facts

    async def wait_for_runner(self) -> None:
        """Nothing, once a runner was there that runs this model; its facts are known then. For a start, in an event loop of its own."""
        said = time.monotonic() - SAID_EVERY_S + 1  # the first second of waiting is nothing to speak of
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                link = await self._open()
            except (OSError, FrameError) as error:
                if time.monotonic() - said >= SAID_EVERY_S:
                    said = time.monotonic()
                    logger.info("waiting for the runner at %s: %s", self._address.text, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                link.end()
                await link.over.wait()
                return

    async def start(self) -> None:
        """Nothing, once there is a stream, or the first attempt at one failed: /readyz tells which."""
        self._keeper = asyncio.ensure_future(self._keep())
        await self._linked.wait()

    def admit(self, rows: int, *, deadline: float) -> Sequence[RemotePlace]:
        """As `Engine.admit`."""
        limit = self._batching.max_queue_size
        if self._closing:
            raise refusals.stopping()
        if rows == 0:
            return []
        if rows > limit:
            raise refusals.too_many(rows, limit)
        if (link := self._link) is None or link.lost:
            raise refusals.no_runner()
        if (waiting := link.waiting()) + rows > limit:
            raise refusals.queue_full(rows, limit, waiting, link.drain_s)
        return link.reserve(rows, deadline)

    def stay(self) -> None:
        """As `Engine.stay`: a runner that ends with this process, because both were told to, is not let go before."""
        self._staying = True

    async def close(self) -> None:
        """Nothing, once every admitted row is answered; the streams are closed then."""
        self._closing = True
        for link in list(self._links):
            await link.idle.wait()
        if self._keeper is not None:
            self._keeper.cancel()
        for link in list(self._links):
            link.end()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await link.over.wait()

    async def _keep(self) -> None:
        """Keep one stream; a new one takes its place when it is lost or its runner is going."""
        pause_s, said = FIRST_PAUSE_S, ""
        while True:
            try:
                link = await self._open()
            except (OSError, FrameError) as error:
                self._linked.set()
                if said != (said := str(error)):  # while the one that is going still answers, nothing is amiss
                    logger.log(logging.DEBUG if self.available else logging.ERROR, "no runner at %s: %s", self._address.text, error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # not all API workers at once
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            pause_s, said = FIRST_PAUSE_S, ""
            before, self._link = self._link, link
            self._links.add(link)
            self._linked.set()
            if before is not None:
                self._retire(before)
            await link.over.wait()
            asyncio.get_running_loop().call_later(GOING_S, self._let_go, link)

    def _let_go(self, link: _Link) -> None:
        if self._link is link and not self._staying:
            self._link = None
            self._retire(link)

    def _retire(self, link: _Link) -> None:
        task = asyncio.ensure_future(self._end_idle(link))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end_idle(self, link: _Link) -> None:
        """Close a link that takes no more rows, once those it has are answered."""
        await link.idle.wait()
        link.end()
        self._links.discard(link)

    async def _open(self) -> _Link:
        """A new link to a runner of this model. Raises OSError and FrameError."""
        link = await _Link.open(self._address)
        facts = link.facts.result()
        if wrong := [name for name, value in self._expected.items() if facts.get(name) != value]:
            link.end()
            shown = ", ".join(f"{name} {self._expected[name]!r}, got {facts.get(name)!r}" for name in wrong)
            raise FrameError(f"expected a runner of {shown}: serve the same bento and the same model on both sides")
        try:
            self._batching = Batching.model_validate(facts["engine"]["batching"])
        except (KeyError, TypeError, ValueError) as error:
            link.end()
            raise FrameError(f"expected how it batches among its facts: {error}") from None
        self._facts = facts["engine"]
        return link
