"""HTTP/1.1 where neither parser nor ASGI is in between: a plain request's head at a glance, and a whole reply as it is sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from ortserve.replies import Reply

MAX_HEAD_BYTES = 64 * 1024  # request line and headers; uvicorn's own limit where it parses with h11
DROPPED_BYTES = 32 * 1024 * 1024  # of a refused body: more than the largest picture any shipped profile takes, and nothing is kept of it

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_FIELDS = re.compile(rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*)+")  # RFC 9112, 5: no folded line, no bare CR or LF, nothing but ASCII
# What says how long the body is, who asks, and whatever asks for more than an answer.
_TELLING = re.compile(rb"\r\n(content-length|x-request-id|connection|expect|te|trailer|transfer-encoding|upgrade):([^\r]*)", re.IGNORECASE)


@dataclass(slots=True)
class PlainRequest:
    """What a head says that has nothing particular. `size`: bytes of head and body."""

    method: str
    path: str  # without a query, not decoded
    request_id: bytes  # as its sender wrote it; b"": it did not
    size: int


def plain_request(data: bytes) -> PlainRequest | None:
    """What a request says whose head `data` begins with; None: it is not there whole, or the parser has to look at it.

    Every parser that takes such a head finds the same body behind it: one Content-Length, and no word of another coding.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    line_end = data.find(b"\r\n", 0, end + 2)
    words = data[:line_end].split(b" ") if end > 0 else ()
    if len(words) != 3 or words[2] != b"HTTP/1.1":
        return None
    fields = _FIELDS.match(data, line_end, end)
    if fields is None or fields.end() != end:
        return None
    length, request_id = b"", b""
    for name, value in _TELLING.findall(data, line_end, end):
        match name.lower():
            case b"content-length" if not length:
                length = value.strip()
            case b"x-request-id" if not request_id:
                request_id = value.strip()
            case b"connection" if value.strip().lower() == b"keep-alive":
                pass
            case _:
                return None
    if (body := droppable_bytes(length)) is None:
        return None
    return PlainRequest(words[0].decode("latin-1"), words[1].partition(b"?")[0].decode("latin-1"), request_id, end + 4 + body)


def droppable_bytes(declared: bytes) -> int | None:
    """The bytes of a body that may be dropped; None: its sender does not say how many, or they are more than that."""
    if not declared.isdigit() or len(declared) > 9:  # 9: or Python would take its time over a number of a million digits
        return None
    return size if (size := int(declared)) <= DROPPED_BYTES else None


def head_of(reply: Reply) -> bytes:
    """The head of a reply as of now, but for what is of one request alone. Every 4xx says its date (RFC 9110, 6.6.1), as uvicorn's do."""
    return b"%sdate: %s\r\ncontent-type: %s\r\n%s" % (
        _STATUS_LINES[reply.status],
        formatdate(usegmt=True).encode(),
        reply.content_type,
        b"".join([b"%s: %s\r\n" % header for header in reply.headers]),
    )


def whole_reply(head: bytes, body: bytes, request_id: bytes, *, last: bool) -> bytes:
    """A reply as it is sent; `last`: it says that the connection closes."""
    closing = b"connection: close\r\n" if last else b""
    return b"%scontent-length: %d\r\nx-request-id: %s\r\n%s\r\n%s" % (head, len(body), request_id, closing, body)
