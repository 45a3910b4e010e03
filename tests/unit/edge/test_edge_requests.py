"""Paths, methods, request ids, bodies and callers that leave: the status, the label and the headers of each."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ortserve import body, errors, logs
from ortserve.edge import Edge, Request, Route
from ortserve.metrics import Metrics
from ortserve.replies import Reply, json_reply
from tests.site import Site, inner_ok, raising, take_body


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
