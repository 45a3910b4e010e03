"""The runner's side of the streams: an ASGI application in front of the edge that answers the rows of each API worker over one request.

A stream is a `POST` to /v1/rows/MODEL whose body never ends, and its answer, which never ends either: frames both ways, as soon as there
are any.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ortserve import frames, refusals
from ortserve.batching import Ticket
from ortserve.edge import App, Receive, Scope, Send
from ortserve.errors import FrameError, InferenceError, RequestError, ServingError
from ortserve.local_engine import LocalEngine

logger = logging.getLogger("ortserve.streams")

HEARTBEAT_S = 1.0  # a stream on which nothing happens says so this often
# Answers that an API worker does not take: beyond this nothing more of it is read until it does. A full queue's answers are far less.
MAX_UNSENT_BYTES = 16 * 1024 * 1024


class Streams:
    """An ASGI application: streams are answered here, everything else by `inner`."""

    def __init__(self, inner: App, engines: Mapping[str, LocalEngine], facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Both by the model's name. `facts` is what every stream begins with: what this runner runs."""
        self._inner = inner
        self._engines = {f"{frames.PATH}/{model}": (engine, facts[model]) for model, engine in engines.items()}
        self._open: set[_Stream] = set()
        self._going = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one stream, or hand the request on."""
        if scope["type"] != "http" or scope["path"] not in self._engines or scope["method"] != "POST":
            await self._inner(scope, receive, send)
            return
        if self._going:
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0"), (b"connection", b"close")]})
            await send({"type": "http.response.body"})
            return
        engine, facts = self._engines[scope["path"]]
        stream = _Stream(engine, receive, send)
        stream.put(frames.Hello(facts))
        self._open.add(stream)
        try:
            await stream.serve()
        finally:
            self._open.remove(stream)

    def leave(self) -> None:
        """Take no new stream, and tell every API worker that this runner is about to end; it answers what they send until they leave."""
        self._going = True
        for stream in self._open:
            stream.put(frames.Going())


class _Stream:
    """One API worker's stream: its rows' places, and the frames that go back."""

    def __init__(self, engine: LocalEngine, receive: Receive, send: Send) -> None:
        self._engine = engine
        self._receive = receive
        self._send = send
        self._reserved: dict[int, Ticket] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._unsent: list[bytes | memoryview] = []
        self._unsent_bytes = 0
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()  # what was unsent went out

    async def serve(self) -> None:
        """Answer until the API worker ends its body, leaves, or sends what is no frame. Its places are given back then."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/octet-stream")]})
        writer = asyncio.ensure_future(self._write())
        reader = frames.Reader()
        try:
            while True:
                message = await self._receive()
                for frame in reader.feed(message.get("body", b"")):
                    self._take(frame)
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    break
                while self._unsent_bytes > MAX_UNSENT_BYTES and not writer.done():
                    self._taken.clear()
                    await self._taken.wait()
        except FrameError as error:
            logger.error("a stream is ended, the other process sent what it may not: %s", error)
        finally:
            for task in list(self._running.values()):
                task.cancel()
            for number in list(self._reserved):
                self._give_back(number)
            writer.cancel()
            with suppress(asyncio.CancelledError):
                await writer
        await self._send({"type": "http.response.body", "body": b"".join(self._unsent), "more_body": False})

    def put(self, frame: frames.Frame) -> None:
        """Send a frame; those of one turn of the event loop go out together."""
        pieces = frames.encode(frame)
        self._unsent += pieces
        self._unsent_bytes += sum(map(len, pieces))
        self._wake.set()

    async def _write(self) -> None:
        swept = time.monotonic()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._wake.wait()
            self._wake.clear()
            if (now := time.monotonic()) - swept >= HEARTBEAT_S:
                swept = now
                self._sweep()
            state = frames.encode(frames.State(self._engine.rows_waiting, self._engine.drain_s))
            body, self._unsent = b"".join([*self._unsent, *state]), []
            self._unsent_bytes = len(body)
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._unsent_bytes -= len(body)
            self._taken.set()

    def _take(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Reserve():
                self._reserve(frame)
            case frames.Row(number, inputs):
                if (ticket := self._reserved.pop(number, None)) is not None:  # else it was refused, and its API worker is told
                    task = self._running[number] = asyncio.ensure_future(self._answer(number, ticket, inputs))
                    task.add_done_callback(lambda _: self._done(number, ticket))
            case frames.Leave(number):
                self._give_back(number)
            case _:
                raise FrameError(f"expected a frame of an API worker, got {type(frame).__name__}")

    def _reserve(self, wanted: frames.Reserve) -> None:
        numbers = range(wanted.number, wanted.number + wanted.rows)
        if any(number in self._reserved or number in self._running for number in numbers):
            raise FrameError("expected new numbers for new rows, got one that has a place")
        try:
            tickets = self._engine.admit(wanted.rows, deadline=time.monotonic() + wanted.within_s)
        except (RequestError, ServingError) as error:
            for number in numbers:
                self.put(frames.Refusal(number, error))
            return
        self._reserved.update(zip(numbers, tickets, strict=True))

    def _sweep(self) -> None:
        """Rows that did not come in time lose their places; for those that did the batcher looks."""
        for number, ticket in list(self._reserved.items()):
            if ticket.remaining_s() < 0:
                self._give_back(number)
                self.put(frames.Refusal(number, refusals.late()))

    def _give_back(self, number: int) -> None:
        if (ticket := self._reserved.pop(number, None)) is not None:
            _leave(ticket)
        elif (task := self._running.get(number)) is not None:
            task.cancel()

    async def _answer(self, number: int, ticket: Ticket, inputs: Any) -> None:
        try:
            outputs = await ticket.infer(inputs)
            self.put(frames.Answer(number, ticket.inference_s, outputs))
        except (RequestError, ServingError) as error:
            self.put(frames.Refusal(number, error))
        except Exception:
            logger.exception("a row failed in a way that is no refusal")
            self.put(frames.Refusal(number, InferenceError("the service failed on this request's rows; its log has the reason")))

    def _done(self, number: int, ticket: Ticket) -> None:
        """Also where the task was cancelled before it began."""
        del self._running[number]
        _leave(ticket)


def _leave(ticket: Ticket) -> None:
    with ticket:
        pass
