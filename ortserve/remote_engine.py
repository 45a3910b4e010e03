"""The engine in another process: rows go to the runner over one stream and come back as they are ready.

A place is taken here and asked for there at once, before anything is decoded; only a refusal is answered. While the queue was full a
moment ago, nobody is asked: the refusal costs microseconds, as in one process.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ortserve import frames, refusals
from ortserve.errors import FrameError
from ortserve.execution import Batching
from ortserve.joined_place import JoinedPlace
from ortserve.runner_link import Link, RemotePlace
from ortserve.runner_stream import Address

logger = logging.getLogger("ortserve.remote_engine")

FIRST_PAUSE_S = 0.05  # before the second attempt to reach the runner; each is twice the one before
LONGEST_PAUSE_S = 1.0  # a runner that is back is found within about a second
SAID_EVERY_S = 10.0  # how often a start says that it still waits
GOING_S = 5.0  # a runner that is about to end is used so long while no other is found; then it is let go, or it would never end
CLOSE_S = 1.0  # for what was put to be sent before this process ends


class RemoteEngine:
    """`ortserve.engine.Engine` of a runner at an address. It keeps one stream to it, and looks for the next one when it ends."""

    def __init__(self, address: Address, expected: Mapping[str, Any]) -> None:
        """`expected` is what the runner must say it runs: protocol, model, version and the sha256 of each precision."""
        self._address = address
        self._expected = expected
        self._facts: Mapping[str, Any] = {}
        self._batching = Batching()
        self._link: Link | None = None
        self._links: set[Link] = set()  # with those whose runner is going, until their rows are answered
        self._keeper: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()  # kept, or they would be collected
        self._linked = asyncio.Event()
        self._staying = False
        self._closing = False

    @property
    def batching(self) -> Batching:
        """The runner's."""
        return self._batching

    @property
    def available(self) -> bool:
        """Whether there is a stream to a runner that runs this model."""
        return self._link is not None and not self._link.lost

    def facts(self) -> Mapping[str, Any]:
        """The runner's."""
        return self._facts

    async def wait_for_runner(self, give_up: Callable[[], bool] = lambda: False) -> bool:
        """True once a runner was there that runs this model; its facts are known then. False where there is reason to give up.

        For a start, in an event loop of its own.
        """
        said = time.monotonic() - SAID_EVERY_S + 1  # the first second of waiting is nothing to speak of
        pause_s = FIRST_PAUSE_S
        while not give_up():
            try:
                link = await self._open()
            except (OSError, FrameError) as error:
                if time.monotonic() - said >= SAID_EVERY_S:
                    said = time.monotonic()
                    logger.info("waiting for the runner at %s: %s", self._address.text, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                link.end()
                await link.over.wait()
                return True
        return False

    async def start(self) -> None:
        """Nothing, once there is a stream, or the first attempt at one failed: /readyz tells which."""
        self._keeper = asyncio.ensure_future(self._keep())
        await self._linked.wait()

    def admit(self, rows: int, *, deadline: float) -> Sequence[RemotePlace]:
        """As `Engine.admit`."""
        if rows == 0 and not self._closing:
            return []
        return self._link_with_room(rows).reserve(rows, deadline)

    def expect_room(self, *, deadline: float, ahead: int = 0) -> None:  # noqa: ARG002  whether there is time, the runner says
        """As `Engine.expect_room`."""
        self._link_with_room(1, ahead)

    def _link_with_room(self, rows: int, ahead: int = 0) -> Link:
        limit = self._batching.max_queue_size
        if self._closing:
            raise refusals.stopping()
        if rows > (most := min(limit, frames.MAX_RESERVED)):
            raise refusals.too_many(rows, most)
        if (link := self._link) is None or link.lost:
            raise refusals.no_runner()
        if (waiting := link.waiting() + ahead) + rows > limit:
            raise refusals.queue_full(rows, limit, waiting, link.drain_s)
        return link

    def admit_together(self, rows: int, *, deadline: float) -> JoinedPlace:
        """As `Engine.admit_together`: a stream carries row by row, so that one frame is no larger for a request of many."""
        return JoinedPlace(self.admit(rows, deadline=deadline))

    def stay(self) -> None:
        """As `Engine.stay`: a runner that ends with this process, because both were told to, is not let go before."""
        self._staying = True

    async def close(self) -> None:
        """Nothing, once every admitted row is answered; the streams are closed then."""
        self._closing = True
        for link in list(self._links):
            await link.idle.wait()
        if self._keeper is not None:
            self._keeper.cancel()
        for link in list(self._links):
            link.end()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await link.over.wait()

    async def _keep(self) -> None:
        """Keep one stream; a new one takes its place when it is lost or its runner is going."""
        pause_s, said = FIRST_PAUSE_S, ""
        while True:
            try:
                link = await self._open()
            except (OSError, FrameError) as error:
                self._linked.set()
                if said != (said := str(error)):  # while the one that is going still answers, nothing is amiss
                    logger.log(logging.DEBUG if self.available else logging.ERROR, "no runner at %s: %s", self._address.text, error)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # not all API workers at once
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            pause_s, said = FIRST_PAUSE_S, ""
            before, self._link = self._link, link
            self._links.add(link)
            self._linked.set()
            if before is not None:
                self._retire(before)
            await link.over.wait()
            asyncio.get_running_loop().call_later(GOING_S, self._let_go, link)

    def _let_go(self, link: Link) -> None:
        if self._link is link and not self._staying:
            self._link = None
            self._retire(link)

    def _retire(self, link: Link) -> None:
        task = asyncio.ensure_future(self._end_idle(link))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _end_idle(self, link: Link) -> None:
        """Close a link that takes no more rows, once those it has are answered."""
        await link.idle.wait()
        link.end()
        self._links.discard(link)

    async def _open(self) -> Link:
        """A new link to a runner of this model. Raises OSError and FrameError."""
        link = await Link.open(self._address)
        facts = link.facts.result()
        if wrong := [name for name, value in self._expected.items() if facts.get(name) != value]:
            link.end()
            shown = ", ".join(f"{name} {self._expected[name]!r}, got {facts.get(name)!r}" for name in wrong)
            raise FrameError(f"expected a runner of {shown}: serve the same bento and the same model on both sides")
        try:
            self._batching = Batching.model_validate(facts["engine"]["batching"])
        except (KeyError, TypeError, ValueError) as error:
            link.end()
            raise FrameError(f"expected how it batches among its facts: {error}") from None
        self._facts = facts["engine"]
        return link
