"""The API worker's side of one stream to its runner: HTTP/1.1 over a unix socket or TCP, frames out and frames in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from httptools import HttpParserError, HttpResponseParser

from ortserve import frames
from ortserve.errors import FrameError, ProfileError

CONNECT_S = 5.0  # for the connection and the runner's first frame
SILENCE_S = 10.0  # after which a runner is lost that should say something every second: its machine is gone, or it hangs


@dataclass(frozen=True, slots=True)
class Address:
    """Where a runner listens, a unix socket's `path` or `host` and `port`; and which of its models is meant."""

    text: str  # as it was given
    model: str
    path: str | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str, model: str) -> Address:
        """Of BentoML's runner map: file:///PATH, tcp://HOST:PORT or http://HOST:PORT. Raises ProfileError."""
        try:
            parts = urlsplit(text)
            if parts.scheme == "file" and parts.path:
                return cls(text, model, path=unquote(parts.path))
            if parts.scheme in ("tcp", "http") and parts.hostname:
                return cls(text, model, host=parts.hostname, port=parts.port or 80)
        except ValueError:
            pass
        raise ProfileError(f"the runner's address is {text!r}: expected http://HOST:PORT")


class RunnerStream(asyncio.Protocol):
    """One stream. `heard` is called with each frame, `lost` once with the reason when the stream has ended."""

    def __init__(self, address: Address, heard: Callable[[frames.Frame], None], lost: Callable[[str], None]) -> None:
        self._address = address
        self._heard = heard
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._reader = frames.Reader()
        self._unsent: frames.Pieces = []
        self._why = "the connection was closed"
        self._heard_at = self._loop.time()
        self._listening: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, address: Address, heard: Callable[[frames.Frame], None], lost: Callable[[str], None]) -> RunnerStream:
        """A stream on which the request was sent. Raises OSError where nobody listens there."""
        loop = asyncio.get_running_loop()

        def make() -> RunnerStream:
            return cls(address, heard, lost)

        if address.path is not None:
            return (await loop.create_unix_connection(make, address.path))[1]
        return (await loop.create_connection(make, address.host, address.port))[1]

    def put(self, frame: frames.Frame) -> None:
        """Send a frame; those of one turn of the event loop go out together. Raises ShapeMismatch where it holds no tensors."""
        pieces = frames.encode(frame)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += pieces

    def end(self) -> None:
        """Close it, once what was put is sent."""
        if self._transport is None or self._transport.is_closing():
            return
        self._why = "it was ended here"
        self._flush()
        self._transport.write(b"0\r\n\r\n")
        self._transport.close()

    def _flush(self) -> None:
        pieces, self._unsent = self._unsent, []
        if pieces and self._transport is not None and not self._transport.is_closing():
            self._transport.writelines([b"%x\r\n" % sum(map(len, pieces)), *pieces, b"\r\n"])

    def _fail(self, why: str) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._why = why
            self._transport.abort()

    def _listen(self) -> None:
        """Look now and then whether the runner is still heard."""
        silent_s = self._loop.time() - self._heard_at
        if silent_s >= SILENCE_S:
            self._fail(f"nothing was heard of it for {silent_s:.0f} s")
        else:
            self._listening = self._loop.call_later(SILENCE_S - silent_s, self._listen)

    # Called by the event loop:

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Send the request's head; its body is the frames."""
        self._transport = transport
        host = f"{self._address.host}:{self._address.port}" if self._address.host else "runner"
        fields = {"Host": host, "Content-Type": "application/octet-stream", "Transfer-Encoding": "chunked"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        transport.write(f"POST {frames.PATH}/{self._address.model} HTTP/1.1\r\n{head}\r\n".encode())
        self._listen()

    def data_received(self, data: bytes) -> None:
        """Parse the answer; every part of its body goes to `on_body`."""
        self._heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(f"it answered with what is no stream ({error})")

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so, once."""
        if self._listening is not None:
            self._listening.cancel()
        self._lost(self._why if exc is None else f"{self._why} ({exc})")

    # Called by the parser:

    def on_headers_complete(self) -> None:
        """The answer's status is there."""
        if (status := self._parser.get_status_code()) != 200:
            expected = f"expected a model_runner there that has the model {self._address.model}"
            self._fail("it is about to end" if status == 503 else f"it answered with status {status}: {expected}")

    def on_body(self, data: bytes) -> None:
        """Some frames, or parts of them."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            for frame in self._reader.feed(data):
                self._heard(frame)
        except FrameError as error:
            self._fail(f"it sent what it may not: {error}")

    def on_message_complete(self) -> None:
        """The runner ended the stream."""
        self._fail("it ended the stream")
