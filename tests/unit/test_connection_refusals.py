"""Who is turned away at the head of a request: asked for by the parser, told again before it, or told a moment later."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvloop
from uvicorn import Config
from uvicorn.server import ServerState

from ortserve import connection, pacing
from ortserve.connection import Connection
from ortserve.http1 import head_of, plain_request, whole_reply
from ortserve.pacing import Pace
from ortserve.replies import Reply
from tests import connections
from tests.connections import ANSWER, CLOSING, KEPT_ALIVE_S, LAST, POST, answers, echo, hasty, slow, talk

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
    monkeypatch.setattr(connections, "KEPT_ALIVE_S", 100)  # it is not that which closes
    assert answers(talk([POST + POST.replace(b"/a", b"/b"), b""], then=Connection.shutdown)) == [["full"], [*ANSWER[:1], "/b", *ANSWER[2:]]]
    assert held.told == 1


@pytest.mark.parametrize("cut", [5, 0])
def test_a_refusal_that_is_held_at_the_end_of_a_process_is_told(held: FullDoor, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(Connection, "leaving", False)  # put back what `shutdown` sets
    monkeypatch.setattr(connections, "KEPT_ALIVE_S", 100)  # it is not that which closes
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


def test_the_body_of_the_second_that_is_refused_has_as_long_as_that_of_the_first(full: FullDoor) -> None:  # noqa: ARG001
    assert answers(talk([POST + POST[:-1], b"o" + CLOSING], pause_s=1.25 * KEPT_ALIVE_S)) == [["full"], ["full"], LAST]
