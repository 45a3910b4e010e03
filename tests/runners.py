"""A runner in the test's own event loop: the streams over a real HTTP server on a unix socket, around a session that the test holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from ortserve import frames
from ortserve.edge import Receive, Scope, Send
from ortserve.engine import Engine
from ortserve.execution import Batching
from ortserve.local_engine import LocalEngine
from ortserve.remote_engine import RemoteEngine
from ortserve.runner_stream import Address
from ortserve.session import Runs
from ortserve.streams import Streams
from tests.held_session import FAR_S, rows, values

IDENTITY = {"protocol": frames.PROTOCOL, "model": "x", "version": "1", "sha256": {"fp32": "00"}}


@dataclass
class Runner:
    """What runs at a socket."""

    engine: LocalEngine
    streams: Streams
    server: uvicorn.Server

    def break_off(self) -> None:
        """Lose every connection at once, as a killed process does."""
        for connection in list(self.server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """Answers 404."""
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@asynccontextmanager
async def runner_at(socket: Path, runs: Runs, batching: Batching, identity: Mapping[str, Any] = IDENTITY) -> AsyncIterator[Runner]:
    """A runner that listens there inside the block; what it admitted is answered or lost after it."""
    engine = LocalEngine(runs, batching, facts={"batching": batching.model_dump(mode="json")})
    streams = Streams(nothing, {"x": engine}, {"x": {**identity, "engine": engine.facts()}})
    config = uvicorn.Config(streams, uds=str(socket), lifespan="off", log_config=None, timeout_graceful_shutdown=0)
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    try:
        yield Runner(engine, streams, server)
    finally:
        server.should_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        await serving
        await engine.close()


def remote(socket: Path) -> RemoteEngine:
    """An engine that looks for its runner there."""
    return RemoteEngine(Address.parse(f"file://{socket}", "x"), IDENTITY)


@asynccontextmanager
async def engine_of(kind: str, folder: Path, runs: Runs, batching: Batching) -> AsyncIterator[tuple[Engine, LocalEngine]]:
    """A started engine around `runs`, "local" or "remote" behind a runner; and the one that has the batcher, be it the same."""
    if kind == "local":
        local = LocalEngine(runs, batching, facts={})
        yield local, local
        await local.close()
        return
    async with runner_at(folder / "s", runs, batching) as runner:
        engine = remote(folder / "s")
        await engine.start()
        try:
            yield engine, runner.engine
        finally:
            await engine.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run it in an event loop of its own, half a minute at most."""

    async def limited() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(limited())


async def until(happened: Callable[[], bool]) -> None:
    """Come back once that is so: for what another connection does."""
    while not happened():
        await asyncio.sleep(0.001)


async def ask(engine: Engine, value: float, *, within_s: float = FAR_S) -> float:
    """What one row of that value becomes."""
    (place,) = engine.admit(1, deadline=time.monotonic() + within_s)
    with place:
        return values(await place.infer(rows(value)))[0]


def asking(engine: Engine, *wanted: float) -> list[asyncio.Task[float]]:
    """As `ask`, a task for each."""
    return [asyncio.ensure_future(ask(engine, value)) for value in wanted]
