"""Below the edge: uvicorn's HTTP/1.1 connection with limits on a request's head, and refusals in the one shape of every error.

uvicorn over httptools takes headers of any length for any time, answers what is no HTTP with a line of text, and loses the body of a
request that offers HTTP/2 (`Upgrade: h2c`, as Java's HttpClient does). When it stops, it closes connections in the middle of a head, and
those whose first request is still on its way. None of that reaches an ASGI application, so it is done here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ortserve import logs
from ortserve.errors import HeadersTooLarge, RequestError, RequestTimeout
from ortserve.replies import Reply, error_reply, log_failure

MAX_HEAD_BYTES = 64 * 1024  # request line and headers; uvicorn's own limit where it parses with h11
HEAD_TIMEOUT_S = 30.0  # as long as the shipped profiles give a body
DROPPED_BYTES = 32 * 1024 * 1024  # of a refused body: more than the largest picture any shipped profile takes, and nothing is kept of it
_CONTINUE = b"HTTP/1.1 100 "  # an interim answer (RFC 9110, 15.2.1), before the head and without a body
FIRST_BYTE_S = 1.0  # what a connection made just before the end has for its first byte: three round trips around the world


TurnedAway = Callable[[str, str, Mapping[bytes, bytes]], tuple[Reply, str] | None]  # as `Door.turned_away`


class _Answered:
    """Stands in place of the cycle of a request that was answered at its head."""

    response_started = response_complete = True
    message_event = asyncio.Event()


_ANSWERED: Any = _Answered()


def _nobody(*_: object) -> None:
    """Nobody is turned away."""


def install(turned_away: TurnedAway | None) -> None:
    """Let uvicorn take `Connection` where it would choose by itself; each asks `turned_away`, if any, before it reads a request's body."""
    Connection.turned_away = staticmethod(turned_away or _nobody)
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


def let_go() -> None:
    """From now on every answer of this process closes its connection, so that its client goes elsewhere before the end."""
    Connection.leaving = True


class Connection(HttpToolsProtocol):
    """One client's connection."""

    leaving = False  # of the whole process
    turned_away: TurnedAway = staticmethod(_nobody)  # of the whole process
    _in_head = False  # a request's first byte came, the empty line after its headers did not
    _began = False  # a request, in what the socket gave last
    _head_bytes = 0  # received of this head, counted by what the socket gave at once; the first of these is not counted
    _due: float | None = None  # by the loop's clock: when what is expected has to be here
    _watch: asyncio.TimerHandle | None = None  # one for all that is expected: to set and cancel one costs more than looking at a clock
    _refusal: RequestError | None = None
    _dropping = False  # the body of a request that was turned away
    _last = False  # nothing is answered after that body
    _declined: bytes | None = None  # the head of a request whose offer of another protocol is not taken, without that offer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head in time."""
        super().connection_made(transport)
        self._expect_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; refuse a head that does not end."""
        self._began = False
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._declined is not None:
                head, self._declined = self._declined, None
                self.parser = HttpRequestParser(self)
                self.data_received(head + data[upgrade.args[0] :])
            elif self._should_upgrade():
                self.handle_websocket_upgrade()
        except HttpParserError:
            self._refuse(self._refusal or RequestError("expected an HTTP/1.1 request, got something else: use an HTTP client"))
        if self._in_head and not self._began and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_too_large())

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head, self._began, self._head_bytes = True, True, 0
        if self._due is None:
            self._expect_soon()

    def on_headers_complete(self) -> None:
        """The head is whole: hand the request on, unless it is too large."""
        self._in_head, self._due = False, None
        if len(self.url) + sum([len(name) + len(value) for name, value in self.headers]) > MAX_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal  # ends the parsing
        if self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers) and not self._should_upgrade():
            # The parser takes what follows for another protocol: the request is parsed again, without the offer.
            fields = [name + b": " + value + b"\r\n" for name, value in self.headers if name != b"upgrade"]
            request_line = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            self._declined = request_line + b"".join(fields) + b"\r\n"
            return
        if self._turned_away():
            return
        before = self.cycle
        super().on_headers_complete()
        if self.leaving:
            if before is not None and not before.response_started:
                before.keep_alive = True  # its client has sent this one behind it: the last answer closes
            self.cycle.keep_alive = False
        if self.cycle is not before and self.cycle.scope["method"] != "HEAD":  # which has no body to wait for
            self.cycle.transport = _OneWrite(self.transport)  # type: ignore[assignment]  # all that a response asks of one

    def on_message_complete(self) -> None:
        """The body is whole."""
        if self._declined is None:
            super().on_message_complete()
        if self._dropping:
            self._dropping, self._due = False, None
            if self._last:
                self.transport.close()
            else:
                self.on_response_complete()

    def _turned_away(self) -> bool:
        """Whether the request was answered already, with a refusal; its body is then taken and dropped, so that its sender sees that."""
        if self.expect_100_continue or self.leaving or (self.cycle is not None and not self.cycle.response_complete):
            return False  # these are answered in their turn, with all that belongs to that
        if self.flow.write_paused:  # its sender does not read: there, its requests wait until it does, and take no memory meanwhile
            return False
        headers = dict(self.headers)
        declared = headers.get(b"content-length", b"")
        if not declared.isdigit() or len(declared) > 9 or int(declared) > DROPPED_BYTES:
            return False
        path = unquote(self.url.partition(b"?")[0].decode("latin-1"))
        refused = self.turned_away(self.parser.get_method().decode(), path, headers)
        if refused is None:
            return False
        self.cycle = _ANSWERED
        self._dropping, self._last = True, not self.parser.should_keep_alive()
        self._expect_soon()  # the rest of the body
        self._write(*refused, last=self._last)
        return True

    def _write(self, reply: Reply, request_id: str, *, last: bool) -> None:
        """Send a whole reply, past what makes responses of ASGI's messages; `last`: it says that the connection closes."""
        head = b"content-type: %s\r\ncontent-length: %d\r\nx-request-id: %s\r\n" % (
            reply.content_type,
            len(reply.body),
            request_id.encode(),
        )
        head += b"".join([b"%s: %s\r\n" % header for header in reply.headers]) + (b"connection: close\r\n" if last else b"")
        self.transport.write(STATUS_LINE[reply.status] + head + b"\r\n" + reply.body)

    def shutdown(self) -> None:
        """The server ends: close once everything that was read, the beginning of a head included, is answered."""
        let_go()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self.cycle is None and not self._in_head:
            self.loop.call_later(FIRST_BYTE_S, self._close_if_unused)
        elif self._dropping:
            self._last = True  # closed before its body is here, its sender would be told of a reset, and not what was answered
        elif not self._in_head:
            self.transport.close()

    def _close_if_unused(self) -> None:
        if self.cycle is None and not self._in_head:
            self.transport.close()

    def _expect_soon(self) -> None:
        self._due = self.loop.time() + HEAD_TIMEOUT_S
        if self._watch is None:
            self._watch = self.loop.call_later(HEAD_TIMEOUT_S, self._look)

    def _look(self) -> None:
        """Whether what is expected is late. Where it is not due yet, look again then; where nothing is expected, no more."""
        self._watch = None
        if self._due is None:
            return
        if (left_s := self._due - self.loop.time()) > 0:
            self._watch = self.loop.call_later(left_s, self._look)
        elif self._in_head:
            self._refuse(RequestTimeout(f"the headers were not complete after {HEAD_TIMEOUT_S:g} s: send them at once"))
        else:
            self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Answer, and close the connection."""
        self._in_head = False
        request_id = logs.new_request_id()
        token = logs.request_id.set(request_id)
        log_failure("connection", error)
        reply = error_reply(error)
        logs.request_id.reset(token)
        self._write(reply, request_id, last=True)
        self.transport.close()


class _OneWrite:
    """A transport for one response, whose head goes out with the first of its body: one system call and one packet in place of two.

    ASGI asks for it too: no part of a response is to be sent before the first event of its body.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._begun = False
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep the head for the next call; send anything else behind it."""
        if not self._begun and not data.startswith(_CONTINUE):
            self._begun, self._head = True, data
            return
        head, self._head = self._head, b""
        self._transport.write(head + data)

    def close(self) -> None:
        """Send what was kept, and close."""
        if self._head:
            self.write(b"")
        self._transport.close()


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"expected at most {MAX_HEAD_BYTES} bytes of request line and headers, got more: send fewer or shorter ones")
