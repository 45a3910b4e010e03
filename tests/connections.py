"""A server of `Connection`s to talk to, byte by byte, and what it is asked and answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from ortserve.connection import Connection
from ortserve.pacing import Pace


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
