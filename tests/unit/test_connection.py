"""The connection below the edge: heads that are slow, split, pipelined or offer another protocol."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from ortserve import connection, pacing
from ortserve.connection import Connection
from ortserve.http1 import MAX_HEAD_BYTES, head_of, plain_request, whole_reply
from ortserve.pacing import Pace
from ortserve.replies import Reply


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the path, the body, and whether an upgrade was offered."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    offered = b"upgrade" in dict(scope["headers"])
    text = json.dumps([scope["method"], scope["path"], scope["query_string"].decode(), body.decode(), offered]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(text)).encode())]})
    await send({"type": "http.response.body", "body": text})


async def hasty(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
    """Answers before it has read anything."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"[]"})


async def slow(scope: Any, receive: Any, send: Any) -> None:
    """As echo, after all that is sent without a pause has come."""
    await asyncio.sleep(0.1)
    await echo(scope, receive, send)


KEPT_ALIVE_S = 1


def talk(pieces: Sequence[bytes], *, app: Any = echo, pause_s: float = 0.001, then: Callable[[Connection], None] | None = None) -> bytes:
    """What a server of `Connection`s said until it closed; every piece is sent after the one before it was taken.

    `then` is called with the connection before the last piece.
    """
    made: list[Connection] = []

    async def both() -> bytes:
        config = Config(app, log_config=None, timeout_keep_alive=KEPT_ALIVE_S)
        config.load()
        loop, state = asyncio.get_running_loop(), ServerState()
        Connection.pace = Pace()  # one belongs to a loop

        def connection() -> Connection:
            made.append(Connection(config, state, {}, loop))
            return made[-1]

        server = await loop.create_server(connection, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
                if then and not left:
                    then(made[0])
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause_s)  # a packet of its own; whole again if the machine is slow, which is as right
            said = await asyncio.wait_for(reader.read(), 60)
            writer.close()
            await writer.wait_closed()
        return said

    return asyncio.run(both())


def answers(said: bytes) -> list[Any]:
    return [json.loads(found) for found in re.findall(rb"\r\n\r\n(\[[^\]]*\])", said)]


POST = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CLOSING = b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n"
OFFER = POST.replace(b"Host: x", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ")
ANSWER = ["POST", "/a", "b=c", "hello", False]
LAST = ["GET", "/last", "", "", False]


FULL = Reply(429, b'["full"]', headers=[(b"retry-after", b"7")])


class FullDoor:
    """Nobody is let in to POST /a; where `standing`, whoever can be is told so before the parser sees the request."""

    def __init__(self, *, standing: bool) -> None:
        self.standing = {"a refusal": "stands"} if standing else {}
        self.asked: list[tuple[str, str, dict[bytes, bytes]]] = []
        self.told = 0

    def told_again(self, data: bytes) -> tuple[bytes, int] | None:
        request = plain_request(data)
        if request is None or request.path != "/a":
            return None
        self.told += 1
        return whole_reply(head_of(FULL), FULL.body, b"its-id", last=False), request.size

    def turned_away(self, method: str, path: str, headers: Any) -> tuple[Reply, str] | None:
        self.asked.append((method, path, headers))
        return (FULL, "its-id") if path == "/a" else None


@pytest.fixture(params=[False, True], ids=["asked at the head", "told again"])
def full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FullDoor:
    door = FullDoor(standing=request.param)
    monkeypatch.setattr(Connection, "door", door)
    return door


def test_a_path_is_looked_at_as_the_application_sees_it(full: FullDoor) -> None:
    assert answers(talk([POST.replace(b"/a?b=c", b"/%61?b=%63"), CLOSING])) == [["full"], LAST]
    assert full.asked[0][1] == "/a"
    assert full.asked[0][2][b"host"] == b"x"


@pytest.mark.parametrize("size", [1, 7, 64, 10_000, 10_000_000])
def test_who_is_turned_away_is_answered_at_the_head_and_keeps_the_connection(full: FullDoor, size: int) -> None:
    long = POST.replace(b"Content-Length: 5", b"Content-Length: 70005") + 70_000 * b"x"
    sent = POST + long + POST.replace(b"/a", b"/b") + CLOSING
    step = max(size, len(sent) // 2000)  # few enough packets for a test
    said = talk([sent[start : start + step] for start in range(0, len(sent), step)])
    assert answers(said) == [["full"], ["full"], [*ANSWER[:1], "/b", *ANSWER[2:]], LAST]
    assert said.count(b"HTTP/1.1 429 Too Many Requests\r\n") == said.count(b"retry-after: 7\r\n") == 2
    assert said.count(b"x-request-id: its-id\r\n") == 2
    if full.standing and size == 10_000_000:  # every head is there whole
        assert full.told == 2
    assert full.told + [path for _, path, _ in full.asked].count("/a") == 2


def test_who_does_not_read_refusals_cannot_fill_memory_with_them(full: FullDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "AT_ONCE", 1_000_000)
    made: list[Connection] = []

    async def flood() -> int:
        config = Config(echo, log_config=None)
        config.load()
        loop, state = asyncio.get_running_loop(), ServerState()
        Connection.pace = Pace()

        def connection() -> Connection:
            made.append(Connection(config, state, {}, loop))
            return made[-1]

        listening, caller = socket.create_server(("127.0.0.1", 0)), socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # or the system holds megabytes before this process must
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        server = await loop.create_server(connection, sock=listening)
        caller.connect(listening.getsockname())
        reader, writer = await asyncio.open_connection(sock=caller, limit=1000)  # it stops reading at twice that
        heads = POST.replace(b"Content-Length: 5", b"Content-Length: 0").removesuffix(b"hello") * 1000
        try:
            async with asyncio.timeout(1):  # until nothing more is taken, or everything was
                for _ in range(80):
                    writer.write(heads)
                    await writer.drain()
        except TimeoutError:
            pass
        held: int = made[0].transport.get_write_buffer_size()
        assert not reader.at_eof()
        writer.transport.abort()
        server.close()
        return held

    assert asyncio.run(flood()) < 200_000
    assert full.told + len(full.asked) > 100


@pytest.mark.parametrize(
    "request_",
    [
        POST.replace(b"Host: x", b"Expect: 100-continue"),  # its sender waits to be told
        POST.replace(b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ],
)
def test_a_body_that_may_not_come_or_not_end_is_no_matter_of_the_door(full: FullDoor, request_: bytes) -> None:
    assert answers(talk([request_, CLOSING])) == [ANSWER, LAST]
    assert full.told == len(full.asked) == 0


def test_what_is_sent_behind_an_unanswered_request_has_its_turn(full: FullDoor) -> None:
    assert answers(talk([POST.replace(b"/a", b"/b") + POST + CLOSING])) == [[*ANSWER[:1], "/b", *ANSWER[2:]], ANSWER, LAST]
    assert full.told == 0
    assert [path for _, path, _ in full.asked] == ["/b"]


def test_what_comes_while_a_request_is_unanswered_has_its_turn(full: FullDoor) -> None:
    pieces = [POST.replace(b"/a", b"/b"), POST, CLOSING]
    assert answers(talk(pieces, app=slow)) == [[*ANSWER[:1], "/b", *ANSWER[2:]], ANSWER, LAST]
    assert full.told == 0


def test_a_body_that_looks_like_a_request_is_none(full: FullDoor) -> None:
    head = POST.replace(b"/a", b"/b").replace(b"Content-Length: 5", b"Content-Length: %d" % len(POST)).removesuffix(b"hello")
    assert answers(talk([head, POST, CLOSING], app=hasty)) == [[], []]
    assert full.told == 0


@pytest.mark.parametrize("length", [5, 3_000_000])  # of the latter most is still on its way: closing then would be a reset
@pytest.mark.parametrize("head", [POST.replace(b"Host: x", b"Connection: close"), POST.replace(b"HTTP/1.1", b"HTTP/1.0")])
def test_a_refusal_closes_where_its_caller_wants_that_once_the_body_is_here(full: FullDoor, head: bytes, length: int) -> None:  # noqa: ARG001
    sent = head.removesuffix(b"hello").replace(b"Content-Length: 5", b"Content-Length: %d" % length) + length * b"x"
    said = talk([sent[start : start + 100_000] for start in range(0, len(sent), 100_000)])
    assert answers(said) == [["full"]]
    assert b"connection: close\r\n" in said


def test_the_rest_of_a_refused_body_is_waited_for_as_long_as_for_a_head(full: FullDoor, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    assert answers(talk([POST[:-2]])) == [["full"]]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> FullDoor:
    """Nobody is let in to POST /a, and everybody is told a moment later."""
    door = FullDoor(standing=True)
    monkeypatch.setattr(Connection, "door", door)
    monkeypatch.setattr(pacing, "AT_ONCE", 0)
    monkeypatch.setattr(pacing, "TICK_S", 0.1)
    return door


@pytest.mark.parametrize("cut", [5, 1, 0])  # bytes of the body that come after the refusal
def test_who_is_told_a_moment_later_keeps_the_connection(held: FullDoor, cut: int) -> None:
    sent = POST + POST[: len(POST) - cut]
    first, second = sent[: len(POST)], sent[len(POST) :]
    assert answers(talk([first, second, POST[len(POST) - cut :] + CLOSING], pause_s=0.2)) == [["full"], ["full"], LAST]
    assert held.told == 2


def test_what_is_sent_behind_a_refusal_that_is_held_has_its_turn(held: FullDoor) -> None:
    assert answers(talk([POST + POST.replace(b"/a", b"/b") + CLOSING])) == [["full"], [*ANSWER[:1], "/b", *ANSWER[2:]], LAST]
    assert answers(talk([POST, POST.replace(b"/a", b"/b"), CLOSING])) == [["full"], [*ANSWER[:1], "/b", *ANSWER[2:]], LAST]
    assert held.told == 2


def test_what_is_behind_a_held_refusal_at_the_end_of_a_process_is_answered(held: FullDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "leaving", False)  # put back what `shutdown` sets
    monkeypatch.setattr(f"{__name__}.KEPT_ALIVE_S", 100)  # it is not that which closes
    assert answers(talk([POST + POST.replace(b"/a", b"/b"), b""], then=Connection.shutdown)) == [["full"], [*ANSWER[:1], "/b", *ANSWER[2:]]]
    assert held.told == 1


@pytest.mark.parametrize("cut", [5, 0])
def test_a_refusal_that_is_held_at_the_end_of_a_process_is_told(held: FullDoor, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(Connection, "leaving", False)  # put back what `shutdown` sets
    monkeypatch.setattr(f"{__name__}.KEPT_ALIVE_S", 100)  # it is not that which closes
    rest = POST[len(POST) - cut :]
    assert answers(talk([POST[: len(POST) - cut], rest], then=Connection.shutdown)) == [["full"]]
    assert held.told == 1


def test_who_leaves_before_being_told_costs_nobody_anything(held: FullDoor) -> None:
    problems: list[dict[str, Any]] = []

    async def leave() -> None:
        config = Config(echo, log_config=None)
        config.load()
        loop, state = asyncio.get_running_loop(), ServerState()
        Connection.pace = Pace()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        server = await loop.create_server(lambda: Connection(config, state, {}, loop), "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()
            _, leaving = await asyncio.open_connection(*address)
            leaving.write(POST)
            reader, staying = await asyncio.open_connection(*address)
            staying.write(POST)
            while held.told < 2:
                await asyncio.sleep(0.001)
            leaving.transport.abort()
            assert b'["full"]' in await reader.readuntil(b"]")
            staying.transport.abort()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # whose transports take nothing once they are closed
        runner.run(leave())
    assert problems == []


def test_who_was_refused_and_asks_no_more_is_let_go_as_anybody_else(full: FullDoor) -> None:  # noqa: ARG001
    assert answers(talk([POST])) == [["full"]]  # and the connection was closed


def test_a_refusal_at_the_end_of_a_process_comes_to_who_is_still_sending(full: FullDoor, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setattr(Connection, "leaving", False)  # put back what `shutdown` sets
    long = POST.replace(b"Content-Length: 5", b"Content-Length: 300005")
    assert answers(talk([long, 300_000 * b"x" + POST], then=Connection.shutdown)) == [["full"]]


def test_a_connection_is_kept_while_the_body_of_an_answered_request_still_comes_and_no_longer() -> None:
    began = time.monotonic()
    long = POST.replace(b"Content-Length: 5", b"Content-Length: 12")
    pieces = [long, *[b"x"] * 6, b"x" + POST]  # each comes before the connection is given up, all of them after that
    assert answers(talk(pieces, app=hasty, pause_s=KEPT_ALIVE_S / 4)) == [[], []]
    assert time.monotonic() - began > 2 * KEPT_ALIVE_S


def test_the_body_of_the_second_that_is_refused_has_as_long_as_that_of_the_first(full: FullDoor) -> None:  # noqa: ARG001
    assert answers(talk([POST + POST[:-1], b"o" + CLOSING], pause_s=1.25 * KEPT_ALIVE_S)) == [["full"], ["full"], LAST]


@pytest.mark.parametrize("request_", [POST, OFFER], ids=["plain", "offers h2c"])
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_request_in_any_pieces_is_one_request(request_: bytes, size: int) -> None:
    sent = request_ + request_ + CLOSING
    assert answers(talk([sent[start : start + size] for start in range(0, len(sent), size)])) == [ANSWER, ANSWER, LAST]


def test_a_chunked_body_with_an_offer_is_kept() -> None:
    sent = OFFER.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked").replace(b"hello", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")
    assert answers(talk([sent + CLOSING])) == [ANSWER, LAST]


def test_a_head_that_does_not_end_in_time_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    for sent in ([b"GET /"], [b"GET / HTTP/1.1\r\nHost: x\r\n"], [POST, b"GET / HTTP/1.1\r\nX: "]):
        said = talk(sent)
        assert b"HTTP/1.1 408 " in said
        assert b'"code":"request_timeout"' in said


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    assert talk([]) == b""


def test_a_body_may_take_longer_than_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    pieces = [POST[:-1], *[b""] * 100, POST[-1:], CLOSING]  # 101 pauses of 1 ms and more
    assert answers(talk(pieces)) == [ANSWER, LAST]


def test_an_answer_of_a_process_that_is_leaving_closes_its_connection_and_loses_nothing_sent_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Connection, "leaving", True)
    assert answers(talk([POST])) == [ANSWER]
    said = talk([POST + POST + POST])
    assert answers(said) == [ANSWER] * 3
    assert said.count(b"connection: close") == 1


def test_a_head_over_the_limit_is_431_in_one_piece_and_in_many() -> None:
    head = b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n"
    for pieces in ([head], [head[start : start + 4096] for start in range(0, len(head), 4096)]):
        said = talk(pieces)
        assert said.startswith(b"HTTP/1.1 431 ")
        assert b'"code":"headers_too_large"' in said


def test_head_and_continue_are_answered_over_a_real_connection() -> None:
    said = talk([POST.replace(b"POST", b"HEAD"), POST.replace(b"Host: x", b"Expect: 100-continue"), CLOSING])
    head, rest = said.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert rest.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    assert answers(said) == [ANSWER, LAST]
