"""Bare runs and requests in turns: what counts, and that an answer is looked at."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from benchmarks import turns
from benchmarks.turns import ask, by_turns, expect_answer

ANSWER = b"HTTP/1.1 200 OK\r\ndate: today\r\nContent-Length: 2\r\n\r\n{}"


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(turns, "time", made)
    return made


def test_each_has_every_picture_twice_and_the_second_call_counts(clock: Clock) -> None:
    happened: list[tuple[str, int]] = []

    def call(name: str, picture: int) -> bytes:
        warm = happened[-1:] == [(name, picture)]
        happened.append((name, picture))
        clock.sleep({"bare": 0.05, "asked": 0.07}[name] if warm else 0.2)
        return ANSWER

    found = by_turns(lambda picture: call("bare", picture), lambda picture: call("asked", picture), 2, 1.5)
    turn = [(name, picture) for picture in (0, 1) for name in ("bare", "asked") for _ in range(2)]
    assert happened == [*turn, *turn[:4]]  # a turn takes half a second and more
    assert found == {"in_turns_bare_p50_ms": pytest.approx(50), "in_turns_p50_ms": pytest.approx(70), "in_turns_calls": 3}


def test_there_is_one_turn_at_least(clock: Clock) -> None:
    assert by_turns(clock.sleep, lambda _: ANSWER, 8, 0.0)["in_turns_calls"] == 1


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        ANSWER[:-1],
        ANSWER + b"x",
        ANSWER.replace(b"200", b"429"),
        ANSWER.replace(b"Content-Length: 2\r\n", b""),
    ],
    ids=["nothing", "half a head", "half a body", "more", "refused", "no length"],
)
def test_what_is_no_whole_answer_ends_the_measurement(said: bytes) -> None:
    expect_answer(ANSWER)
    with pytest.raises(RuntimeError, match="expected a whole answer with status 200"):
        by_turns(lambda _: None, lambda _: said, 1, 1.0)


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """To somebody who answers whatever is sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as other:
                while other.recv(100):
                    other.sendall(ANSWER)

        thread = threading.Thread(target=answer)
        thread.start()
        with socket.create_connection(server.getsockname()) as made:
            yield made
        thread.join()


def test_a_request_is_sent_as_it_is(connection: socket.socket) -> None:
    assert ask(connection, b"GET / HTTP/1.1\r\n\r\n") == ANSWER
    assert ask(connection, b"GET / HTTP/1.1\r\n\r\n") == ANSWER
