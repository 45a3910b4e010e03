"""Who waits behind a connection that an event loop took in: taken in with it where the loop's turns are long, and no more than a share."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace

import pytest
import uvloop

from ortserve import accepting as accepting_module
from ortserve.accepting import LONG_TURN_S, MOST, Accepting
from ortserve.listening import waiting

CALLERS = 40
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many wait: elsewhere the loop accepts as it does")


class Taken(asyncio.Protocol):
    """Counts itself in; one that the loop took in makes the loop's turn as long as it is told to, and lets the others be taken in too."""

    def __init__(self, made: list[Taken], turn: Callable[[], None] | None = None) -> None:
        self._made, self._turn = made, turn

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.peer = transport.get_extra_info("peername")
        self.without_delay = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        self._made.append(self)
        if self._turn is not None:
            self._turn()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the accepting takes for the time: it stands unless it is moved."""
    stands = SimpleNamespace(now=100.0)
    monkeypatch.setattr(accepting_module, "time", SimpleNamespace(monotonic=lambda: stands.now))
    return stands


def turns(clock: SimpleNamespace, turn_s: float, *, sharing: int = 1, callers: int = CALLERS) -> list[int]:
    """How many were left by each turn of a loop that takes one in each, until all are in; everybody knocks before the first."""
    made: list[Taken] = []
    left: list[int] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Taken(made, turn), "127.0.0.1", 0, backlog=callers)
        held = [socket.socket(fileno=socket.dup(one.fileno())) for one in server.sockets]
        accepting = Accepting(lambda: held, sharing=sharing)

        def turn() -> None:
            left.append(waiting(held[0]))
            clock.now += turn_s
            accepting.go_on(lambda: Taken(made), None)

        knocking = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(callers)]
        while len(made) < callers:
            await asyncio.sleep(0.001)
        assert sorted(one.peer for one in made) == sorted(one.getsockname() for one in knocking)
        assert all(one.without_delay for one in made)
        server.close()
        for one in (*knocking, *held):
            one.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return left


def test_a_loop_with_long_turns_lets_nobody_wait_for_one_each(clock: SimpleNamespace) -> None:
    assert turns(clock, 1.1 * LONG_TURN_S) == [
        CALLERS - 1,
        CALLERS - 2,
    ]  # with the second, the first known to be long, come all the others


def test_no_turn_takes_more_than_those_who_are_in_can_wait_for(clock: SimpleNamespace) -> None:
    assert turns(clock, 1.1 * LONG_TURN_S, callers=MOST + 20) == [MOST + 19, MOST + 18, 17]


def test_of_those_that_several_processes_could_take_each_takes_a_share(clock: SimpleNamespace) -> None:
    left = turns(clock, 1.1 * LONG_TURN_S, sharing=4)
    assert left[:3] == [CALLERS - 1, CALLERS - 2, CALLERS - 3 - (CALLERS - 2) // 4]
    assert len(left) < CALLERS / 2


def test_a_loop_with_short_turns_takes_one_in_each(clock: SimpleNamespace) -> None:
    assert turns(clock, 0.9 * LONG_TURN_S) == list(reversed(range(CALLERS)))


def test_a_pause_in_which_nobody_waited_is_no_long_turn(clock: SimpleNamespace) -> None:
    held = socket.create_server(("127.0.0.1", 0))
    accepting = Accepting(lambda: [held], sharing=1)
    accepting.go_on(asyncio.Protocol, None)  # nobody is left
    clock.now += 1000 * LONG_TURN_S
    with closing(held), closing(socket.create_connection(held.getsockname())):
        accepting.go_on(asyncio.Protocol, None)
        assert waiting(held) == 1
