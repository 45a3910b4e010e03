"""Below the edge: uvicorn's HTTP/1.1 connection with limits on a request's head, and refusals in the one shape of every error.

uvicorn over httptools takes headers of any length for any time, answers what is no HTTP with a line of text, and loses the body of a
request that offers HTTP/2 (`Upgrade: h2c`, as Java's HttpClient does). When it stops, it closes connections in the middle of a head, and
those whose first request is still on its way. None of that reaches an ASGI application, so it is done here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ortserve import logs
from ortserve.accepting import Accepting
from ortserve.deadline import Deadline
from ortserve.errors import HeadersTooLarge, RequestError, RequestTimeout
from ortserve.http1 import MAX_HEAD_BYTES, droppable_bytes, head_of, whole_reply
from ortserve.one_write import OneWrite
from ortserve.pacing import Pace
from ortserve.replies import Reply, error_reply, log_failure

HEAD_TIMEOUT_S = 30.0  # as long as the shipped profiles give a body
FIRST_BYTE_S = 1.0  # what a connection made just before the end has for its first byte: three round trips around the world


class Doorkeeper(Protocol):
    """Who says at a request's head whether it is let in. `Door` is one."""

    @property
    def standing(self) -> Mapping[Any, Any]:
        """Empty where `told_again` has nothing to say to anybody."""

    def told_again(self, data: bytes) -> tuple[bytes, int] | None:
        """What is sent at once to the request that `data` begins with, and the bytes of its head and body; None: it has to be parsed."""

    def turned_away(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> tuple[Reply, str] | None:
        """What is answered, with which request id, to a request that would find no place; None: let it in."""


class _Answered:
    """Stands in place of the cycle of a request that was answered at its head."""

    response_started = response_complete = True
    message_event = asyncio.Event()


class _Held(_Answered):
    """Stands in place of the cycle of a request whose refusal waits: whatever is sent behind it has its turn after that."""

    response_started = response_complete = False
    keep_alive = True


_ANSWERED: Any = _Answered()
_HELD: Any = _Held()


class _Open:
    """Lets everybody in."""

    standing: Mapping[Any, Any] = {}

    def told_again(self, data: bytes) -> None: ...
    def turned_away(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> None: ...


def install(door: Doorkeeper | None, accepting: Accepting | None) -> None:
    """Let uvicorn take `Connection` where it would choose by itself; each asks `door`, if any, before it reads a request's body.

    `accepting` is told of each that the event loop took in.
    """
    Connection.door, Connection.accepting = door or _Open(), accepting
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


def let_go() -> None:
    """From now on every answer of this process closes its connection, so that its client goes elsewhere before the end."""
    Connection.leaving = True


class Connection(HttpToolsProtocol):
    """One client's connection."""

    leaving = False  # of the whole process
    door: Doorkeeper = _Open()  # of the whole process
    accepting: Accepting | None = None  # of the whole process
    pace = Pace()  # of the whole process
    _beside = False  # taken in by `accepting`
    _within = False  # a request: its first byte came, its last one did not
    _in_head = False  # a request's first byte came, the empty line after its headers did not
    _began = False  # a request, in what the socket gave last
    _head_bytes = 0  # received of this head, counted by what the socket gave at once; the first of these is not counted
    _refusal: RequestError | None = None
    _dropping = False  # the body of a request that was turned away, which the parser reads
    _holding = False  # its refusal: its sender is told a moment later
    _unparsed_bytes = 0  # still to come and to drop, of a request that the parser knows nothing of
    _last = False  # nothing is answered after that body
    _declined: bytes | None = None  # the head of a request whose offer of another protocol is not taken, without that offer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head in time."""
        super().connection_made(transport)
        self._deadline = Deadline(self.loop, self._late)
        self._deadline.expect(HEAD_TIMEOUT_S)
        if self.accepting is not None and not self._beside:
            self.accepting.go_on(self._another, self.config.ssl)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        self._deadline.close()
        super().connection_lost(exc)

    def _another(self) -> Connection:
        made = Connection(self.config, self.server_state, self.app_state)
        made._beside = True
        return made

    def data_received(self, data: bytes) -> None:
        """Refuse who is told what others were; parse the rest; refuse a head that does not end."""
        if self._unparsed_bytes or (self.door.standing and not self._within):
            data = self._told_again(data)
            if not data:
                return
        self._began = False
        if self._deadline.expects and self._within and not self._in_head and not self._dropping:
            self._deadline.expect(self.timeout_keep_alive)  # its answer is sent, its body is still coming
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
        self._within, self._in_head, self._began, self._head_bytes = True, True, True, 0
        self._deadline.expect(HEAD_TIMEOUT_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field: the parser leaves whitespace behind a value, which is no part of it (RFC 9112, 5.1)."""
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """The head is whole: hand the request on, unless it is too large."""
        self._in_head = False
        self._deadline.forget()
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
            self.cycle.transport = OneWrite(self.transport)  # type: ignore[assignment]  # all that a response asks of one

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._within = False
        if self._declined is not None:
            return
        super().on_message_complete()
        if self._dropping:
            self._dropping = False
            self._dropped()

    def on_response_complete(self) -> None:
        """Answer who waits behind it; else expect the next request, as long as uvicorn does, by the timer that is there already."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._in_head:  # which is expected already
            self._deadline.expect(self.timeout_keep_alive)

    def _told_again(self, data: bytes) -> bytes:
        """What is left of `data` for the parser, once whoever asks for what was refused a moment ago is told the same."""
        if self._unparsed_bytes:
            data = self._drop(data, self._unparsed_bytes)
        while data and self._may_refuse() and (told := self.door.told_again(data)) is not None:
            reply, size = told
            self._holding = self.pace.hold(self, reply)
            if self._holding:
                self.cycle = _HELD
            else:
                self.cycle = _ANSWERED
                self.transport.write(reply)
            if self._holding or size > len(data):
                self._deadline.expect(HEAD_TIMEOUT_S)  # the rest of the body
            data = self._drop(data, size)
        return data

    def tell(self, reply: bytes) -> None:
        """Send a refusal that was held back, and go on with what came behind it."""
        self._holding = False
        if self.transport.is_closing():
            return
        self.transport.write(reply)
        if self.cycle is _HELD:
            self.cycle = _ANSWERED
        if not self._unparsed_bytes:
            self._dropped()

    def _drop(self, data: bytes, size: int) -> bytes:
        """`data` without so many bytes of an answered request; those it has not are dropped when they come."""
        self._unparsed_bytes = max(0, size - len(data))
        if not self._unparsed_bytes:
            self._dropped()
        return data[size:]

    def _dropped(self) -> None:
        """All of a request that was turned away is here: it is done with, once its sender is told."""
        if self._holding:
            return
        if self._last:
            self.transport.close()
        else:
            self.on_response_complete()

    def _turned_away(self) -> bool:
        """Whether the request was answered already, with a refusal; its body is then taken and dropped, so that its sender sees that."""
        if self.expect_100_continue or not self._may_refuse():
            return False
        headers = dict(self.headers)
        if droppable_bytes(headers.get(b"content-length", b"")) is None:
            return False
        path = unquote(self.url.partition(b"?")[0].decode("latin-1"))
        refused = self.door.turned_away(self.parser.get_method().decode(), path, headers)
        if refused is None:
            return False
        self.cycle = _ANSWERED
        self._dropping, self._last = True, not self.parser.should_keep_alive()
        self._deadline.expect(HEAD_TIMEOUT_S)  # the rest of the body
        self._write(*refused, last=self._last)
        return True

    def _may_refuse(self) -> bool:
        """Whether a request that comes now may be answered before its turn at the application."""
        if self.leaving or (self.cycle is not None and not self.cycle.response_complete):
            return False  # these are answered in their turn, with all that belongs to that
        return not self.flow.write_paused  # its sender does not read: there, its requests wait until it does, and take no memory meanwhile

    def _write(self, reply: Reply, request_id: str, *, last: bool) -> None:
        """Send a whole reply, past what makes responses of ASGI's messages."""
        self.transport.write(whole_reply(head_of(reply), reply.body, request_id.encode(), last=last))

    def shutdown(self) -> None:
        """The server ends: close once everything that was read, the beginning of a head included, is answered."""
        let_go()
        if self._dropping or self._unparsed_bytes or self.cycle is _HELD:
            self._last = True  # closed before its body is here, its sender would be told of a reset, and not what was answered
        elif self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        elif self.cycle is None and not self._in_head:
            self.loop.call_later(FIRST_BYTE_S, self._close_if_unused)
        elif not self._in_head:
            self.transport.close()

    def _close_if_unused(self) -> None:
        if self.cycle is None and not self._in_head:
            self.transport.close()

    def _late(self) -> None:
        """What was expected did not come."""
        if self._in_head:
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


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"expected at most {MAX_HEAD_BYTES} bytes of request line and headers, got more: send fewer or shorter ones")
