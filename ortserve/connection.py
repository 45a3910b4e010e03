"""Below the edge: uvicorn's HTTP/1.1 connection with limits on a request's head, and refusals in the one shape of every error.

uvicorn over httptools takes headers of any length for any time, and answers what is no HTTP with a line of text. None of that
reaches an ASGI application, so it is done here.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec

from uvicorn import config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ortserve import logs
from ortserve.errors import HeadersTooLarge, RequestError, RequestTimeout
from ortserve.replies import error_reply, log_failure

MAX_HEAD_BYTES = 64 * 1024  # request line and headers; uvicorn's own limit where it parses with h11
HEAD_TIMEOUT_S = 30.0  # as long as the shipped profiles give a body


def install() -> None:
    """Let uvicorn take `Connection` where it would choose by itself; without httptools it takes h11, which has a limit of its own."""
    if find_spec("httptools") is not None:
        config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"


class Connection(HttpToolsProtocol):
    """One client's connection."""

    _in_head = False  # a request's first byte came, the empty line after its headers did not
    _head_bytes = 0  # received of this head, counted by what the socket gave at once; the first of these is not counted
    _timer: asyncio.TimerHandle | None = None
    _refusal: RequestError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head in time."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_timed_out)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is expected."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; refuse a head that does not end."""
        went_on = self._in_head
        super().data_received(data)
        if went_on and self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_too_large())

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_timed_out)

    def on_headers_complete(self) -> None:
        """The head is whole: hand the request on, unless it is too large."""
        self._in_head = False
        self._expect_nothing()
        if len(self.url) + sum([len(name) + len(value) for name, value in self.headers]) > MAX_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal  # ends the parsing; comes back as send_400_response()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's words
        """Refuse what could not be parsed."""
        self._refuse(self._refusal or RequestError("expected an HTTP/1.1 request, got something else: use an HTTP client"))

    def _head_timed_out(self) -> None:
        self._timer = None
        if self._in_head:
            self._refuse(RequestTimeout(f"the headers were not complete after {HEAD_TIMEOUT_S:g} s: send them at once"))
        else:
            self.transport.close()

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: RequestError) -> None:
        """Answer, and close the connection."""
        self._in_head = False
        request_id = logs.new_request_id()
        token = logs.request_id.set(request_id)
        log_failure("connection", error)
        reply = error_reply(error)
        logs.request_id.reset(token)
        fields = {"content-type": "application/json", "content-length": len(reply.body), "x-request-id": request_id, "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(STATUS_LINE[reply.status] + head.encode() + b"\r\n" + reply.body)
        self.transport.close()


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(f"expected at most {MAX_HEAD_BYTES} bytes of request line and headers, got more: send fewer or shorter ones")
