"""The load of one measurement, in a process of its own: it shares no interpreter with the search, and starts in a tenth of a second.

`python -m ortserve.tune.load` reads a `Plan` as JSON from standard input and writes `Counted` figures as JSON to standard output. A
closed loop finds what the service can do: so many callers, each with one request under way. An open loop finds what its callers wait
for: requests arrive at random (Poisson) at a given rate, whatever the answers do, and a late answer is counted from the moment when
its request was due, not from when a connection was free for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from ortserve.tune.counted import OK, Counted, Tally, answer_rate

AFTER_A_REFUSAL_S = 0.05  # a caller of the closed loop that was refused asks again after this; at once would measure refusals
CONNECTIONS = 2000  # open at once, at most: beyond, an arrival counts as failed
IDLE_S = 2.0  # a connection unused for longer is given up: the service closes it after 5
ANSWER_WITHIN_S = 10.0  # after the open loop's last arrival; what is not answered then counts as failed


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent to 127.0.0.1:`port`: the files in `requests` hold whole HTTP requests, sent in turn."""

    port: int
    requests: tuple[str, ...]
    callers: int  # of the closed loop
    warm_up_s: float  # of the closed loop, not counted
    closed_s: float
    open_s: float
    rate: float | None  # of the open loop, requests per second; None: `share` of what the closed loop found
    share: float
    seed: int = 0


class Connections:
    """Keep-alive connections to one port: the one used last is used next, so that idle ones grow old."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []
        self._busy = 0

    async def send(self, request: bytes) -> int | None:
        """The status of the answer; None where there was none, or too many connections are busy."""
        if self._busy >= CONNECTIONS:
            return None
        self._busy += 1
        writer = None
        try:
            reader, writer = await self._take()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
            await reader.readexactly(length)
            if b"connection: close" in head.lower():
                writer.close()
            else:
                self._idle.append((reader, writer, time.monotonic()))
            return int(head[9:12])
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            if writer is not None:
                writer.close()
            return None
        except asyncio.CancelledError:
            if writer is not None:
                writer.close()
            raise
        finally:
            self._busy -= 1

    async def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer, since = self._idle.pop()
            if time.monotonic() - since < IDLE_S and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)

    def close(self) -> None:
        """Close what is idle."""
        for _, writer, _ in self._idle:
            writer.close()


async def closed_loop(connections: Connections, requests: Sequence[bytes], plan: Plan) -> Counted:
    """The figures of `plan.callers` callers. Answers are what is counted: as many requests are under way at either end of the window."""
    tally, turns = Tally(), _from_anywhere(requests, plan.seed)
    answers = [time.perf_counter()]
    begin = answers[0] + plan.warm_up_s
    end = begin + plan.closed_s

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            status = await connections.send(next(turns))
            if begin <= (now := time.perf_counter()) <= end:
                tally.add(status, now - started)
            if status == OK:
                answers.append(now)
            else:
                await asyncio.sleep(AFTER_A_REFUSAL_S)

    callers = [asyncio.ensure_future(caller()) for _ in range(plan.callers)]
    _, late = await asyncio.wait(callers, timeout=end - time.perf_counter() + ANSWER_WITHIN_S)
    await _cancel(late)
    return replace(tally.counted(plan.closed_s), requests_per_s=answer_rate(answers, begin, end))


async def open_loop(connections: Connections, requests: Sequence[bytes], plan: Plan, rate: float) -> Counted:
    """The figures of requests that are due at random moments, `rate` a second on average."""
    tally, turns, chance = Tally(), _from_anywhere(requests, plan.seed + 1), random.Random(plan.seed)
    begin = time.perf_counter()
    under_way: set[asyncio.Future[None]] = set()

    async def one(due: float) -> None:
        status: int | None = None
        try:
            status = await connections.send(next(turns))
        finally:
            tally.add(status, time.perf_counter() - due)

    due = begin
    while (due := due + chance.expovariate(rate)) < begin + plan.open_s:
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.ensure_future(one(due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(set(under_way), timeout=ANSWER_WITHIN_S)
        await _cancel(under_way)
    return tally.counted(plan.open_s)


async def _cancel(tasks: Iterable[asyncio.Future[None]]) -> None:
    for task in list(tasks):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _from_anywhere(requests: Sequence[bytes], seed: int) -> Iterator[bytes]:
    start = random.Random(seed).randrange(len(requests))
    return cycle([*requests[start:], *requests[:start]])


async def run(plan: Plan) -> dict[str, Any]:
    """`{"closed": ..., "open": ...}`, each as `Counted`; "open" is None where the closed loop had no answer to take a rate from."""
    requests = [Path(file).read_bytes() for file in plan.requests]
    connections = Connections(plan.port)
    closed = await closed_loop(connections, requests, plan)
    rate = plan.rate if plan.rate is not None else closed.requests_per_s * plan.share
    opened = await open_loop(connections, requests, plan, rate) if rate > 0 else None
    connections.close()
    return {"closed": asdict(closed), "open": None if opened is None else asdict(opened)}


def main() -> None:
    """The load of the plan on standard input."""
    fields = json.load(sys.stdin)
    plan = Plan(**{**fields, "requests": tuple(fields["requests"])})
    try:
        import uvloop
    except ImportError:  # on Windows; slower, for every candidate alike
        figures = asyncio.run(run(plan))
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures = runner.run(run(plan))
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
