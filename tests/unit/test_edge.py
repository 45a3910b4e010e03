"""The edge over a fake inner application and fake routes: statuses, methods, labels, request ids, and what no answer may show."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from ortserve import body, errors, logs, replies
from ortserve.edge import App, Edge, Handler, Request, Route
from ortserve.metrics import Metrics
from ortserve.replies import Reply, json_reply

Message = dict[str, Any]


@dataclass
class Answered:
    """What a caller saw."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode("latin-1") for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def error(self) -> dict[str, str]:
        error: dict[str, str] = json.loads(self.body)["error"]
        assert set(error) == {"code", "message", "request_id"}
        assert error["request_id"] == self.headers["x-request-id"]
        return error


async def inner_ok(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
    """An inner application that says where it was called."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"inner ", "more_body": True})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def raising(error: BaseException) -> Handler:
    async def handler(_: Request) -> Reply:
        raise error

    return handler


async def hello(request: Request) -> Reply:
    return json_reply({"path_value": request.path_values.get("name", "")})


async def take_body(request: Request) -> Reply:
    data = await body.read(request.receive, request.headers, limit_bytes=1_000_000, timeout_s=60, budget=body.BufferBudget(10**9))
    return json_reply({"bytes": len(data)})


ROUTES = (Route("GET", "/hello", hello), Route("GET", "/things/{name}", hello), Route("POST", "/take", take_body))


class Site:
    """An edge and its metrics."""

    def __init__(self, inner: App = inner_ok, extra: Sequence[Route] = ()) -> None:
        self.metrics = Metrics(service="s", version="1")
        self.edge = Edge(
            inner, [*ROUTES, *extra], passed_on=["/", "/docs.json"], mounts=["/files/"], metrics=self.metrics, tracer=None, access_log=True
        )

    def ask(
        self,
        path: str,
        method: str = "GET",
        headers: Sequence[tuple[bytes, bytes]] = (),
        messages: Sequence[Message] = ({"type": "http.request", "body": b""},),
        query: bytes = b"",
    ) -> Answered:
        scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "query_string": query}
        left, answered = list(messages), Answered()

        async def receive() -> Message:
            return left.pop(0) if left else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answered.messages.append(dict(message))

        asyncio.run(self.edge(scope, receive, send))
        return answered

    def counted(self) -> dict[tuple[str, str], float]:
        """{(endpoint, status): requests}."""
        return {
            (sample.labels["endpoint"], sample.labels["http_response_code"]): sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "bentoml_service_request_total"
        }

    def in_progress(self) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "bentoml_service_request_in_progress"
        )


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(autouse=True)
def _request_ids_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Records carry the id of the request that they were written under, as the service's handler makes them."""

    def add(record: logging.LogRecord) -> bool:
        record.request_id = logs.request_id.get()
        return True

    caplog.handler.addFilter(add)
    with caplog.at_level(logging.INFO):
        yield


# --- errors -----------------------------------------------------------------------------------------------------------

SECRET = "/opt/model.onnx: onnxruntime said so"


def an_error(kind: type[errors.OrtServeError]) -> errors.OrtServeError:
    return errors.MethodNotAllowed("PUT", "GET") if kind is errors.MethodNotAllowed else kind("expected one thing, got another")


@pytest.mark.parametrize("kind", replies.STATUS)
def test_every_error_has_its_status_and_the_one_shape(kind: type[errors.OrtServeError], caplog: pytest.LogCaptureFixture) -> None:
    error = an_error(kind)
    error.__cause__ = ValueError(SECRET)
    answer = Site(extra=[Route("GET", "/fails", raising(error))]).ask("/fails")
    assert answer.status == replies.STATUS[kind]
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    told = isinstance(error, errors.RequestError | errors.ServingError)
    assert answer.error["code"] == (kind.code if told else "internal")
    assert (answer.error["message"] == str(error)) == told
    assert SECRET not in answer.body.decode()
    record = next(record for record in caplog.records if SECRET in record.getMessage())
    assert record.request_id == answer.error["request_id"]  # type: ignore[attr-defined]


def test_every_error_a_caller_can_cause_has_a_status_of_its_own_or_of_its_base() -> None:
    def tree(kind: type[errors.OrtServeError]) -> Iterator[type[errors.OrtServeError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    for kind in tree(errors.RequestError):
        assert 400 <= replies.status_of(an_error(kind)) < 500
    for kind in tree(errors.ServingError):
        assert replies.status_of(an_error(kind)) in (429, 500, 503, 504)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 7.4])
def test_a_full_queue_says_when_to_come_back(seconds: float) -> None:
    answer = Site(extra=[Route("GET", "/full", raising(errors.QueueFull("full", retry_after_s=seconds)))]).ask("/full")
    assert (answer.status, answer.headers["retry-after"]) == (429, str(max(1, round(seconds))))


@pytest.mark.parametrize("error", [RuntimeError(SECRET), errors.ModelError(SECRET), KeyError(SECRET), MemoryError(SECRET)])
def test_what_nobody_expected_is_a_500_without_details(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(extra=[Route("GET", "/fails", raising(error))])
    answer = site.ask("/fails")
    assert (answer.status, answer.error["code"]) == (500, "internal")
    assert SECRET not in answer.body.decode()
    assert "onnxruntime" not in answer.body.decode()
    record = next(record for record in caplog.records if record.exc_info)
    assert record.request_id == answer.error["request_id"]  # type: ignore[attr-defined]
    assert site.counted() == {("/fails", "500"): 1}
    assert site.in_progress() == 0


# --- below /v2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.ShapeMismatch("wrong"), 400, {}),
        (errors.PayloadTooLarge("large"), 413, {}),
        (errors.QueueFull("full", retry_after_s=3.2), 429, {"retry-after": "3"}),
        (errors.ShuttingDown("stopping"), 503, {}),
        (errors.RunnerUnavailable("gone", retry_after_s=1), 503, {"retry-after": "1"}),
        (errors.DeadlineExceeded("late"), 504, {}),
        (ValueError("/secret/path"), 500, {}),
    ],
)
def test_errors_of_the_protocol_have_its_shape_and_our_statuses(error: Exception, status: int, headers: dict[str, str]) -> None:
    site = Site(extra=[Route("POST", "/v2/models/{name}/infer", raising(error))])
    answer = site.ask("/v2/models/a/infer", "POST")
    assert answer.status == status
    said = json.loads(answer.body)
    assert said.keys() == {"error"}
    assert said["error"] == (str(error) if status != 500 else said["error"])
    assert "secret" not in said["error"]
    assert headers.items() <= answer.headers.items()
    assert answer.headers["x-request-id"]
    assert site.counted() == {("/v2/models/{name}/infer", str(status)): 1}


@pytest.mark.parametrize(("path", "method", "status"), [("/v2", "GET", 404), ("/v2/x", "GET", 404), ("/v2/models/a/infer", "GET", 405)])
def test_also_where_no_handler_was_asked(path: str, method: str, status: int) -> None:
    site = Site(extra=[Route("POST", "/v2/models/{name}/infer", hello)])
    answer = site.ask(path, method)
    assert (answer.status, json.loads(answer.body).keys()) == (status, {"error"})
    assert isinstance(json.loads(answer.body)["error"], str)
    assert site.ask("/v2x").error["code"] == "not_found"


# --- paths and methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "value"), [("/hello", ""), ("/things/a", "a"), ("/things/%2e%2e", "%2e%2e"), ("/things/ä", "ä")])
def test_routes(site: Site, path: str, value: str) -> None:
    answer = site.ask(path)
    assert (answer.status, json.loads(answer.body)) == (200, {"path_value": value})
    assert list(site.counted()) == [("/things/{name}" if value else "/hello", "200")]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/hello", "GET, HEAD"),
        ("PUT", "/things/a", "GET, HEAD"),
        ("GET", "/take", "POST"),
        ("HEAD", "/take", "POST"),
        ("BREW", "/take", "POST"),
    ],
)
def test_a_wrong_method_says_which_are_right(site: Site, method: str, path: str, allowed: str) -> None:
    answer = site.ask(path, method)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert answer.error["code"] == "method_not_allowed"


def test_unknown_paths_share_one_label(site: Site) -> None:
    unknown = (
        "/nope",
        "/hello/",
        "/things/",
        "/things/a/b",
        "//",
        "/files",
        "",
        "/docs.json/",
        "/../etc/passwd",
        "/\x00",
        "/" + "x" * 10_000,
    )
    for path in unknown:
        answer = site.ask(path)
        assert (answer.status, answer.error["code"]) == (404, "not_found"), path
    assert site.counted() == {("unmatched", "404"): len(unknown)}


def test_head_is_get_without_the_body(site: Site) -> None:
    got, head = site.ask("/hello"), site.ask("/hello", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]


# --- BentoML's application behind it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "label"), [("/", "/"), ("/docs.json", "/docs.json"), ("/files/a.js", "/files/"), ("/files/", "/files/")])
def test_the_inner_application_keeps_its_paths(site: Site, path: str, label: str) -> None:
    answer = site.ask(path, headers=[(b"x-request-id", b"mine")])
    assert (answer.status, answer.body) == (200, b"inner " + path.encode())
    assert answer.headers["x-request-id"] == "mine"
    assert site.counted() == {(label, "200"): 1}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 405, 415, 422, 499, 500, 503])
def test_an_error_of_the_inner_application_is_replaced(status: int, streamed: bool) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"999"), (b"x-secret", b"1")]})
        if streamed:
            await send({"type": "http.response.body", "body": b"Traceback", "more_body": True})
            await send({"type": "http.response.body", "body": SECRET.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": SECRET.encode()})

    site = Site(inner)
    answer = site.ask("/")
    assert answer.status == status
    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert "x-secret" not in answer.headers
    assert "Traceback" not in answer.body.decode()
    assert "onnxruntime" not in answer.body.decode()
    assert answer.error["code"] == {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}.get(
        status, "bad_request" if status < 500 else "internal"
    )
    assert site.counted() == {("/", str(status)): 1}


def test_an_inner_application_that_raises_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def inner(*_: Any) -> None:
        raise RuntimeError(SECRET)

    answer = Site(inner).ask("/")
    assert (answer.status, answer.error["code"]) == (500, "internal")
    assert SECRET in caplog.text


def test_an_inner_application_that_answers_500_and_raises_again_is_answered_once(caplog: pytest.LogCaptureFixture) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise RuntimeError(SECRET)  # as Starlette's ServerErrorMiddleware does

    answer = Site(inner).ask("/")
    assert (answer.status, len(answer.messages)) == (500, 2)
    record = next(record for record in caplog.records if record.exc_info)
    assert record.request_id == answer.error["request_id"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [RuntimeError(SECRET), errors.InvalidImage("no")])
def test_an_answer_that_breaks_in_its_middle_breaks_the_connection(error: Exception) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise error

    site = Site(inner)
    with pytest.raises(type(error)):
        site.ask("/")
    assert site.counted() == {("/", "500"): 1}
    assert site.in_progress() == 0


def test_lifespan_and_websockets_are_the_inner_applications() -> None:
    seen = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        seen.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        asyncio.run(Site(inner).edge({"type": kind}, raising, raising))  # type: ignore[arg-type]
    assert seen == ["lifespan", "websocket"]


# --- request ids ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["a", "A-Z_0.9", "x" * 128, "0af7651916cd43dd8448eb211c80319c"])
@pytest.mark.parametrize("path", ["/hello", "/nope", "/docs.json"])
def test_a_valid_request_id_is_kept(site: Site, sent: str, path: str) -> None:
    assert site.ask(path, headers=[(b"x-request-id", sent.encode())]).headers["x-request-id"] == sent


@pytest.mark.parametrize(
    "sent", [b"", b"x" * 129, b"a b", b"a\r\nX-Evil: 1", b"a\x00", b"\xff", "ä".encode(), b"a/b", b"<script>", b"${jndi}", b"a\n"]
)
def test_any_other_request_id_is_replaced(site: Site, sent: bytes) -> None:
    answer = site.ask("/nope", headers=[(b"x-request-id", sent)])
    assert logs.valid_request_id(answer.headers["x-request-id"])
    assert answer.headers["x-request-id"].encode() != sent
    assert answer.error["request_id"] == answer.headers["x-request-id"]


def test_ids_differ_and_do_not_leak_into_the_next_request(site: Site) -> None:
    ids = {site.ask("/hello").headers["x-request-id"] for _ in range(300)}
    assert len(ids) == 300
    assert logs.request_id.get() == "-"


# --- bodies and callers that leave ------------------------------------------------------------------------------------


def test_a_caller_that_leaves_gets_nothing_and_counts_as_499(site: Site) -> None:
    answer = site.ask("/take", "POST", messages=[{"type": "http.request", "body": b"x", "more_body": True}])
    assert answer.messages == []
    assert site.counted() == {("/take", "499"): 1}
    assert site.in_progress() == 0


def test_a_caller_that_leaves_while_it_waits_ends_the_work() -> None:
    ended = []

    async def slow(request: Request) -> Reply:
        async def work() -> Reply:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)
            raise AssertionError

        return await body.unless_gone(request.receive, work())

    site = Site(extra=[Route("POST", "/slow", slow)])
    assert site.ask("/slow", "POST", messages=[]).messages == []
    assert ended == [True]
    assert site.counted() == {("/slow", "499"): 1}


@pytest.mark.parametrize(
    ("headers", "closes"),
    [
        ([], False),
        ([(b"content-length", b"0")], False),
        ([(b"content-length", b"65536")], False),
        ([(b"content-length", b"65537")], True),
        ([(b"content-length", b"9" * 5000)], True),
        ([(b"transfer-encoding", b"chunked")], True),
    ],
)
@pytest.mark.parametrize("path", ["/nope", "/hello"])
def test_a_refused_body_that_may_be_long_ends_the_connection(
    site: Site, headers: list[tuple[bytes, bytes]], closes: bool, path: str
) -> None:
    answer = site.ask(path, "POST", headers=headers)
    assert answer.status in (404, 405)
    assert (answer.headers.get("connection") == "close") == closes


def test_a_body_that_was_read_leaves_the_connection_open(site: Site) -> None:
    messages = [{"type": "http.request", "body": b"x" * 70_000, "more_body": True}, {"type": "http.request", "body": b"x"}]
    answer = site.ask("/take", "POST", [(b"content-length", b"70001")], messages)
    assert (answer.status, json.loads(answer.body)) == (200, {"bytes": 70_001})
    assert "connection" not in answer.headers


def test_a_body_that_is_too_slow_ends_the_connection() -> None:
    site = Site(extra=[Route("POST", "/slow", raising(errors.RequestTimeout("too slow")))])
    assert site.ask("/slow", "POST", [(b"content-length", b"5")]).headers["connection"] == "close"


@pytest.mark.parametrize("query", [b"&".join([b"a=1"] * 65), b"a=%ff", b"%00=%0a", b"=&=&;", b"\xff\xfe"])
def test_any_query_is_read_or_refused(query: bytes) -> None:
    async def echo(request: Request) -> Reply:
        return json_reply(request.query())

    answer = Site(extra=[Route("GET", "/echo", echo)]).ask("/echo", query=query)
    assert answer.status == (422 if query.count(b"&") == 64 else 200)


def test_the_access_line_names_the_route_and_never_the_path(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.ask("/secret-path")
    access = [record for record in caplog.records if record.name == logs.ACCESS]
    assert [record.getMessage().split()[:3] for record in access] == [["GET", "unmatched", "404"]]
    assert "secret-path" not in caplog.text


class Full:
    """A gate without room."""

    def let_in(self) -> None:
        raise errors.QueueFull("expected room")

    def refused(self, reason: str, times: int) -> None:
        raise AssertionError(reason, times)


def test_the_door_knows_the_edges_routes_and_stands_open_where_requests_are_traced() -> None:
    routes = [Route("POST", "/of/{name}", take_body, lambda names: Full() if names["name"] == "full" else None)]
    site = Site(extra=routes)
    assert site.edge.door is not None
    assert site.edge.door.turned_away("POST", "/of/full", {}) is not None
    assert site.edge.door.turned_away("POST", "/of/free", {}) is None
    assert site.counted() == {("/of/{name}", "429"): 1}
    tracer: Any = object()
    edge = Edge(inner_ok, routes, passed_on=[], mounts=[], metrics=Metrics(service="s", version="1"), tracer=tracer, access_log=False)
    assert edge.door is None  # a span belongs to a whole request


def test_refusals_for_want_of_room_have_one_line_a_second(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(replies, "_overload", replies._Overload())
    monkeypatch.setattr(replies.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    for second in (100.0, 100.5, 100.9, 101.0, 102.5):
        now[0] = second
        replies.log_failure("/classify", errors.QueueFull("expected room"))
    replies.log_failure("/classify", errors.DeadlineExceeded("late"))  # any other failure has its own
    assert [record.getMessage() for record in caplog.records] == [
        "/classify: 429 queue_full: expected room",
        "/classify: 429 queue_full: expected room, and 2 more before it",
        "/classify: 429 queue_full: expected room",
        "/classify: 504 deadline_exceeded: late",
    ]
