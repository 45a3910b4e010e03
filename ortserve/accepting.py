"""New connections of a busy process: its share of all that wait, in each long turn of the event loop.

libuv, and uvloop with it, accepts one connection in a turn (since 1.45, libuv/libuv#3696): an idle loop's turn takes microseconds. One
of a loop that has all it can do takes tens of milliseconds. Of some hundred callers that come at once the last would wait for a second
before they are let in, or told that there is no room.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable

from ortserve.listening import waiting

LONG_TURN_S = 0.005  # of an event loop that has more to do than to accept; in shorter ones processes that share a socket take turns evenly
MOST = 128  # in one turn: some 20 ms, for which those who are in wait too


class Accepting:
    """Takes in who waits behind a connection that the loop took in. In the event loop's thread alone."""

    def __init__(self, listening: Callable[[], list[socket.socket]], *, sharing: int) -> None:
        """`sharing` processes accept from the sockets that `listening` has: none takes more than its share of those who wait."""
        self._listening = listening
        self._sockets: list[socket.socket] = []
        self._sharing = sharing
        self._left_at: float | None = None  # `time.monotonic()` seconds: the last turn, where it left somebody waiting
        self._tasks: set[asyncio.Task[None]] = set()

    def go_on(self, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> None:
        """The loop accepted one in this turn: take in a share of the others too where its turns are long, each with its own `protocol`."""
        self._sockets = self._sockets or self._listening()
        now = time.monotonic()
        long = self._left_at is not None and now - self._left_at >= LONG_TURN_S
        left = 0
        for held in self._sockets:
            wait = waiting(held)
            left += wait - (self._accept(held, min(wait // self._sharing, MOST), protocol, tls) if long else 0)
        self._left_at = now if left else None

    def _accept(self, held: socket.socket, count: int, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> int:
        """How many of `count` were there."""
        for taken in range(count):
            try:
                connection, _ = held.accept()
            except OSError:  # another process was first, or there are too many files: the loop finds out by itself, and says so
                return taken
            task = asyncio.get_running_loop().create_task(_connect(connection, protocol, tls))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return count


async def _connect(connection: socket.socket, protocol: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None) -> None:
    connection.setblocking(False)
    with contextlib.suppress(OSError):  # it left, or its TLS handshake failed: as with any other
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection, ssl=tls)
