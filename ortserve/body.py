"""Request bodies: read with every limit checked before the cost arises, and multipart taken apart without copying."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header

from ortserve.errors import PayloadTooLarge, QueueFull, RequestError, RequestTimeout

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
T = TypeVar("T")

UNWATCHED_S = 0.1  # a model that costs anything at all is asked by callers who wait longer than that once there is a queue
MAX_PART_HEADER_BYTES = 8 * 1024  # the usual limit of HTTP servers for one line of headers; real parts have about 150
_REMEMBERED = 256  # headers taken apart: one program's requests have the same, or the same few. Two megabytes at the very most


class ClientGone(Exception):
    """The caller closed the connection: there is nobody left to tell, so this is no error of ours."""


class BufferBudget:
    """Bytes of request bodies this worker holds at once, so that many slow uploads cannot take all memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.used = 0

    def take(self, count: int) -> None:
        """Count `count` more bytes; QueueFull where they do not fit."""
        if self.used + count > self._limit:
            raise QueueFull("as many bytes of requests are held as this service allows: send again later")
        self.used += count

    def give_back(self, count: int) -> None:
        """Count `count` bytes less."""
        self.used -= count


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart body. `data` is a view into the body; `filename` is None for a plain form field."""

    name: str
    filename: str | None
    content_type: str | None
    data: memoryview


async def read(receive: Receive, headers: Mapping[bytes, bytes], *, limit_bytes: int, timeout_s: float, budget: BufferBudget) -> bytes:
    """The whole body, counted while it streams. The bytes count against `budget` until the caller gives them back.

    Raises PayloadTooLarge as soon as the declared or the received length passes `limit_bytes`, RequestTimeout where the body is not
    complete in time, QueueFull where the worker holds too many bytes already, ClientGone where the caller left.
    """
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and (len(declared) > 18 or int(declared) > limit_bytes):  # int() has a limit of its own
        raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                if chunk := message.get("body", b""):
                    if received + len(chunk) > limit_bytes:
                        raise _too_large(limit_bytes)
                    budget.take(len(chunk))
                    received += len(chunk)
                    chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        budget.give_back(received)
        raise RequestTimeout(f"the body was not complete after {timeout_s:g} s: send it faster or send less") from None
    except BaseException:
        budget.give_back(received)
        raise


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, or ClientGone soon after the caller closed the connection; the work is cancelled then.

    To be called once the body was read: the next message can only be `http.disconnect` (ASGI, HTTP connection scope). It is waited for
    from `UNWATCHED_S` on: watching costs a task, and whoever leaves so soon leaves about when the answer is ready.
    """
    task = asyncio.current_task()
    assert task is not None  # a handler runs in one
    watcher: asyncio.Future[Any] | None = None
    over = False

    def ended(done: asyncio.Future[Any]) -> None:
        if not over and not done.cancelled():
            task.cancel()

    def watch() -> None:
        nonlocal watcher
        watcher = asyncio.ensure_future(receive())
        watcher.add_done_callback(ended)

    timer = asyncio.get_running_loop().call_later(UNWATCHED_S, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if watcher is not None and watcher.done() and not watcher.cancelled():
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        over = True
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"expected a body of at most {limit_bytes} bytes, got more: send less, or several requests")


def media_type(headers: Mapping[bytes, bytes]) -> tuple[str, Mapping[bytes, bytes]]:
    """The body's media type in lower case and the parameters of the Content-Type header; ("", {}) where there is none."""
    return _media_type(headers.get(b"content-type", b""))


@lru_cache(_REMEMBERED)
def _media_type(header: bytes) -> tuple[str, Mapping[bytes, bytes]]:
    value, options = parse_options_header(header)
    return value.decode("latin-1"), options


def parse_multipart(body: bytes, boundary: bytes, *, max_parts: int) -> list[Part]:
    """The parts of a `multipart/form-data` body (RFC 7578), in order, their data as views into `body`.

    Raises RequestError where the body is not well formed, ends early, or has more than `max_parts` parts.
    """
    if not 1 <= len(boundary) <= 70:  # RFC 2046, 5.1.1
        raise RequestError("expected a multipart boundary of 1 to 70 characters in Content-Type: let your HTTP client set this header")
    delimiter = b"--" + boundary
    view = memoryview(body)
    parts: list[Part] = []
    position = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if position < 2 and not body.startswith(delimiter):
        raise _malformed("its boundary is not in it")
    while True:
        position += len(delimiter)
        if body.startswith(b"--", position):
            return parts
        line_end = body.find(b"\r\n", position)
        if line_end < 0 or body[position:line_end].strip(b" \t"):
            raise _malformed("a boundary line is not complete")
        headers_end = body.find(b"\r\n\r\n", line_end, line_end + MAX_PART_HEADER_BYTES)
        if headers_end < 0:
            raise _malformed("a part has no end of its headers")
        data_end = body.find(b"\r\n" + delimiter, headers_end + 2)
        if data_end < 0:
            raise _malformed("its last part does not end")
        if len(parts) == max_parts:
            raise RequestError(f"expected at most {max_parts} parts in one request, got more: split it over several requests")
        start = min(headers_end + 4, data_end)
        parts.append(_part(body[line_end + 2 : headers_end], view[start:data_end]))
        position = data_end + 2


def _part(header_block: bytes, data: memoryview) -> Part:
    return Part(*_part_head(header_block), data)


@lru_cache(_REMEMBERED)
def _part_head(header_block: bytes) -> tuple[str, str | None, str | None]:
    """A part's name, file name and media type."""
    headers = {
        name.strip().lower(): value.strip()
        for line in header_block.split(b"\r\n")
        for name, colon, value in [line.partition(b":")]
        if colon
    }
    disposition, options = parse_options_header(headers.get(b"content-disposition", b""))
    if disposition != b"form-data" or b"name" not in options:
        raise _malformed('a part lacks the header Content-Disposition: form-data; name="..."')
    filename = options.get(b"filename")
    content_type = headers.get(b"content-type")
    return (
        options[b"name"].decode("utf-8", "replace"),
        None if filename is None else filename.decode("utf-8", "replace"),
        None if content_type is None else parse_options_header(content_type)[0].decode("latin-1"),
    )


def _malformed(what: str) -> RequestError:
    return RequestError(
        f"expected a multipart/form-data body, but {what}: let your HTTP client build it, for instance curl -F image=@picture.jpg"
    )
