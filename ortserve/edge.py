"""The HTTP edge: a lean ASGI application in front of BentoML's own, one table of routes, one shape of error.

The way of a request: `Edge.__call__` -> a handler of `routes.py` -> `ServedModel` -> the reply. Paths that are BentoML's own
(the files of the Swagger page, the schema, user-defined APIs and mounted apps) are passed on; their errors are put into our shape.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from ortserve import errors, logs
from ortserve.body import ClientGone
from ortserve.door import Door, Gate
from ortserve.metrics import UNMATCHED, Metrics
from ortserve.paths import Paths
from ortserve.replies import Reply, error_body, error_reply, error_shape, json_reply, log_failure
from ortserve.tracing import Tracer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("ortserve.edge")

CLIENT_GONE = 499  # nginx's number for "client closed request"; only ever seen in logs and metrics
# The rest of a refused body up to this size is taken and dropped, so that the connection lives on; a larger one is not waited for.
DRAINED_BYTES = 64 * 1024


@dataclass(slots=True)
class Request:
    """What a handler sees of a request. `headers` are lower case; of a repeated one the last counts."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    receive: Receive
    query_string: bytes
    path_values: Mapping[str, str] = field(default_factory=dict)  # what stood in place of each {name} in the route's template
    span: Any = None  # the server span while tracing is on

    def query(self) -> list[tuple[str, str]]:
        """The query parameters, decoded, in order."""
        try:
            return parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=64)
        except ValueError:
            raise errors.InvalidParameter("expected at most 64 query parameters, got more: send only those the endpoint takes") from None


Handler = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """One path. A segment of `template` may be a `{name}`; it is the metrics' label. GET routes answer HEAD too.

    `gate`, of what stood in place of each {name}: who says whether the handler would refuse whatever the request's body says; None: nobody.
    """

    method: str
    template: str
    handler: Handler
    gate: Callable[[Mapping[str, str]], Gate | None] | None = None


class Edge:
    """An ASGI application. `inner` is BentoML's; it keeps the lifespan and the paths in `passed_on` (exact) and below `mounts`."""

    def __init__(
        self,
        inner: App,
        routes: Sequence[Route],
        *,
        passed_on: Sequence[str],
        mounts: Sequence[str],
        metrics: Metrics,
        tracer: Tracer | None,
        access_log: bool,
    ) -> None:
        self._inner = inner
        self._paths: Paths[dict[str, Route]] = Paths()
        for route in routes:
            self._paths.put(route.template, {})[route.method] = route
        self._passed_on = frozenset(passed_on)
        self._mounts = tuple(mounts)
        self._metrics = metrics
        self._tracer = tracer
        self._access_log = access_log
        self.door = Door(self._gate_of, metrics, access_log=access_log) if tracer is None else None  # a span belongs to a whole request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan and websockets go to BentoML's application."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = logs.request_id_of(headers)
        token = logs.request_id.set(request_id)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        incoming = _Incoming(receive, headers)
        template, route, request = self._match(method, scope["path"], headers, incoming.receive, scope["query_string"])
        answer = _Answer(send, request_id, incoming, head=scope["method"] == "HEAD")
        self._metrics.request_started(template)
        with nullcontext() if self._tracer is None else self._tracer.server_span(scope, route=template) as request.span:
            try:
                await self._respond(template, route, request, scope, answer)
            finally:
                seconds = time.perf_counter() - started
                self._metrics.request_finished(template, answer.status, seconds)
                if request.span is not None:
                    request.span.set_status(answer.status)
                if self._access_log:
                    logs.access(
                        method=scope["method"], endpoint=template, status=answer.status, seconds=seconds, sent_bytes=answer.sent_bytes
                    )
                logs.request_id.reset(token)

    def _gate_of(self, method: str, path: str) -> tuple[str, Gate] | None:
        methods, path_values = self._paths.find(path)
        route = None if methods is None else methods.get(method)
        gate = None if route is None or route.gate is None else route.gate(path_values)
        return None if route is None or gate is None else (route.template, gate)

    def _match(
        self, method: str, path: str, headers: dict[bytes, bytes], receive: Receive, query_string: bytes
    ) -> tuple[str, Route | None, Request]:
        """The route's template, the route (None: passed on, or an error), and the request for its handler."""
        request = Request(method, path, headers, receive, query_string)
        methods, request.path_values = self._paths.find(path)
        if methods is not None:
            route = methods.get(method)
            if route is not None:
                return route.template, route, request
            template = next(iter(methods.values())).template
            allowed = ", ".join(f"{name}, HEAD" if name == "GET" else name for name in methods)
            return template, Route(method, template, _refuse(errors.MethodNotAllowed(method, allowed))), request
        if path in self._passed_on:
            return path, None, request
        if mount := next((mount for mount in self._mounts if path.startswith(mount)), None):
            return mount, None, request
        return UNMATCHED, Route(method, UNMATCHED, _refuse(errors.NotFound(f"no such path: {_GUIDE}"))), request

    async def _respond(self, template: str, route: Route | None, request: Request, scope: Scope, answer: _Answer) -> None:
        try:
            if route is None:
                _told.set(answer.told)
                await self._inner(scope, request.receive, answer.pass_on)
                return
            reply = await route.handler(request)
        except ClientGone:
            answer.status = CLIENT_GONE
            logger.info("%s: the caller left before the answer", template)
            return
        except Exception as error:
            log_failure(template, error)
            if answer.complete:  # Starlette raises again what it has answered
                return
            if answer.begun:
                answer.status = 500
                raise  # the server breaks the connection: nothing else tells the caller that the rest is missing
            reply = error_reply(error, error_shape(request.path))
        await answer.send(reply)


_GUIDE = "GET / shows what there is"
_told: ContextVar[list[errors.OrtServeError] | None] = ContextVar("told", default=None)  # by user-defined APIs of the request in hand


@contextmanager
def telling() -> Iterator[None]:
    """Lets the edge know of an error in a user-defined API: BentoML answers 500 to any that it does not know."""
    try:
        yield
    except errors.OrtServeError as error:
        if (told := _told.get()) is not None:
            told.append(error)
        raise


def _refuse(error: errors.RequestError) -> Handler:
    async def handler(_: Request) -> Reply:
        raise error

    return handler


class _Incoming:
    """Receives one request and knows whether more of it than `DRAINED_BYTES` may still come."""

    def __init__(self, receive: Receive, headers: Mapping[bytes, bytes]) -> None:
        self._receive = receive
        declared = headers.get(b"content-length", b"0")
        self.pending = b"transfer-encoding" in headers or not declared.isdigit() or len(declared) > 9 or int(declared) > DRAINED_BYTES

    async def receive(self) -> Message:
        """The next message."""
        message = await self._receive()
        if not message.get("more_body", False):
            self.pending = False
        return message


class _Answer:
    """Sends one response and remembers what became of it."""

    def __init__(self, send: Send, request_id: str, incoming: _Incoming, *, head: bool) -> None:
        self._send = send
        self._id_header = (b"x-request-id", request_id.encode("latin-1"))
        self._incoming = incoming
        self._head = head
        self._replaced: int | None = None
        self.told: list[errors.OrtServeError] = []
        self.status = 500
        self.begun = False
        self.complete = False
        self.sent_bytes = 0

    async def send(self, reply: Reply) -> None:
        """Send a whole reply."""
        self.status = reply.status
        self.begun = True
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", str(len(reply.body)).encode()),
            self._id_header,
            *reply.headers,
        ]
        if self._incoming.pending or reply.status == 408:
            headers.append((b"connection", b"close"))  # or the server would take the rest of the body, however long, and drop it
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        body = b"" if self._head else reply.body
        self.sent_bytes = len(body)
        await self._send({"type": "http.response.body", "body": body})
        self.complete = True

    async def pass_on(self, message: Message) -> None:
        """Send a message of BentoML's application; an error response is replaced by one in our shape."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400:
                self._replaced = self.status
                return
            self.begun = True
            message["headers"] = [*message["headers"], self._id_header]
        elif self._replaced is not None:
            if not message.get("more_body", False):
                ours = self.told and self._replaced == 500
                await self.send(error_reply(self.told[-1]) if ours else _foreign_error(self._replaced))
            return
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)


def _foreign_error(status: int) -> Reply:
    """An error of BentoML or Starlette in our shape: the status is theirs, the words are ours."""
    kinds: Mapping[int, tuple[str, str]] = {
        404: (errors.NotFound.code, f"no such path: {_GUIDE}"),
        405: (errors.MethodNotAllowed.code, f"the path does not take this method: {_GUIDE}"),
        415: (errors.UnsupportedMediaType.code, "the body is of a media type this endpoint does not read: see GET /docs.json"),
    }
    if status >= 500:
        code, message = "internal", "the service failed on this request; its log has the reason under this request_id"
    else:
        code, message = kinds.get(status, (errors.RequestError.code, "the request does not fit this endpoint: see GET /docs.json"))
    return json_reply(error_body(code, message), status)
