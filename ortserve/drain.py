"""How a worker ends: not ready at once, still answering for a while, then nothing more is accepted and what was read is answered.

uvicorn stops accepting the moment it is told to, while whoever spreads the load still believes in this worker, and while the parent
process still holds the listening socket: connections that come in then are made by the kernel and reset later. So the signal only
begins a drain here, and the listening socket itself is closed to newcomers, for every process that holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

from uvicorn.server import Server

from ortserve.listening import turn_newcomers_away, waiting

logger = logging.getLogger("ortserve.drain")

PARENT_LOOK_S = 1.0  # between two looks whether the parent lives; its port stays taken for so long after a kill -9
_HANDSHAKE_S = 0.2  # for handshakes under way when newcomers are turned away: a round trip around the world
_QUEUE_WAIT_S = 5.0  # no event loop of this service stands still for so long


class Drain:
    """One worker's end. `leave` is called first (the worker is ready no more); `at_once` says whether there is a reason not to wait."""

    def __init__(self, delay_s: float, leave: Callable[[], object], at_once: Callable[[], bool], parent_lives: Callable[[], bool]) -> None:
        self._delay_s = delay_s
        self._leave = leave
        self._at_once = at_once
        self._parent_lives = parent_lives
        self._begun = False
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None

    def arm(self) -> None:
        """From now on a signal to stop begins the drain. To be called inside uvicorn's own loop, once the worker is warm.

        Does nothing where no uvicorn listens for signals: an application served by something else ends as that does.
        """
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if not isinstance(server, Server):
            return
        self._server, self._loop = server, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)  # uvicorn puts back what it found when it ends
        self._loop.call_later(PARENT_LOOK_S, self._look)

    def listening(self) -> list[socket.socket]:
        """Duplicates of the sockets on which uvicorn listens; [] before it does, and where none listens for signals."""
        servers = getattr(self._server, "servers", [])  # uvicorn has the attribute once it listens
        return [socket.socket(fileno=socket.dup(held.fileno())) for server in servers for held in server.sockets]

    def _told(self, number: int, _: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._begin, number)

    def _look(self) -> None:
        if self._parent_lives():
            self._loop.call_later(PARENT_LOOK_S, self._look)
        else:
            logger.error("the service's parent process is gone: this worker answers what it has read, and ends")
            self._begin(signal.SIGTERM)

    def _begin(self, number: int) -> None:
        if not self._begun:
            self._begun = True
            self._leave()
            hurry = number == signal.SIGINT or self._at_once() or not self._parent_lives()
            self._task = self._loop.create_task(self._end(0.0 if hurry else self._delay_s))

    async def _end(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        assert self._server is not None  # a drain begins only where one was armed
        listening = self.listening()
        turned_away = [turn_newcomers_away(held) for held in listening]
        if any(turned_away):
            await asyncio.sleep(_HANDSHAKE_S)
        deadline = self._loop.time() + _QUEUE_WAIT_S
        while any(waiting(held) for held in listening) and self._loop.time() < deadline:
            await asyncio.sleep(0)  # uvicorn accepts in between, as every other worker does
        for server in self._server.servers:
            server.close()
        _close(listening)
        self._server.should_exit = True  # without the signal uvicorn would raise again once it has ended: the status is 0


def _close(listening: list[socket.socket]) -> None:
    """Refuse whoever still knocks: `shutdown` ends the listening in every process that holds the socket, the parent's included."""
    for held in listening:
        with contextlib.suppress(OSError):  # another worker was first
            held.shutdown(socket.SHUT_RDWR)
        held.close()
