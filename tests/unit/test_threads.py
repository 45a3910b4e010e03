"""Threads of an event loop's own: whose work is done, by whom, and what becomes of what fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ortserve import threads
from ortserve.threads import Threads

FAR_S = 30.0


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), FAR_S))


def name(wait: threading.Event | None = None) -> str:
    if wait is not None:
        assert wait.wait(FAR_S)
    return threading.current_thread().name


def busy(seconds: float) -> str:
    """Of CPU time, whatever else the machine does."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return threading.current_thread().name


def test_what_a_function_returns_or_raises_reaches_whoever_asked() -> None:
    async def test() -> None:
        working = Threads(2, "work")
        assert await asyncio.gather(*(working.run(pow, 2, power) for power in range(20))) == [2**power for power in range(20)]
        with pytest.raises(ZeroDivisionError):
            await working.run(divmod, 1, 0)
        with pytest.raises(SystemExit):
            await working.run(exec, "raise SystemExit")
        assert {await working.run(name) for _ in range(20)} <= {"work-0", "work-1"}  # neither died of it
        working.close()

    run(test)


def test_what_was_given_up_before_its_turn_is_not_called() -> None:
    async def test() -> None:
        working, held, called = Threads(1, "work"), threading.Event(), threading.Event()
        first = working.run(name, held)
        given_up = working.run(called.set)
        given_up.cancel()
        held.set()
        assert await first == "work-0"
        await working.run(name)
        assert not called.is_set()
        working.close()

    run(test)


def test_a_thread_on_call_comes_while_the_others_take_long_and_leaves_when_they_no_longer_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LONG_S", 0.05)  # longer than a busy machine keeps a short job waiting

    async def test() -> None:
        working, held = Threads(1, "work", on_call=1), threading.Event()
        first = working.run(name, held)
        began = time.monotonic()
        assert await working.run(busy, 2 * threads.LONG_S) == "work-1"
        assert time.monotonic() - began >= threads.LONG_S
        assert await asyncio.gather(*(working.run(busy, 2 * threads.LONG_S) for _ in range(3))) == ["work-1"] * 3  # called once for all
        waiting = [working.run(name) for _ in range(3)]
        held.set()
        assert await first == "work-0"
        assert set(await asyncio.gather(*waiting)) <= {"work-0", "work-1"}
        while working._looking is not None:
            await asyncio.sleep(threads.LONG_S)
        assert {await working.run(name) for _ in range(50)} == {"work-0"}
        working.close()

    run(test)


def test_short_jobs_do_not_call_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "LONG_S", 0.2)  # as above

    async def test() -> None:
        working = Threads(1, "work", on_call=1)
        for _ in range(20):
            assert set(await asyncio.gather(*(working.run(name) for _ in range(20)))) == {"work-0"}
        await asyncio.sleep(2 * threads.LONG_S)
        assert working._looking is None  # nor does anything look any more
        working.close()

    run(test)


def test_closing_ends_every_thread_once_all_is_done() -> None:
    async def test() -> None:
        working, held = Threads(2, "work", on_call=2), threading.Event()
        asked = [working.run(name, held) for _ in range(2)] + [working.run(busy, threads.LONG_S) for _ in range(6)]
        asyncio.get_running_loop().call_later(4 * threads.LONG_S, held.set)
        await asyncio.to_thread(working.close)
        assert len(await asyncio.gather(*asked)) == 8
        assert not any(thread.is_alive() for thread in working._threads)

    run(test)


def test_a_loop_that_is_closed_costs_no_thread() -> None:
    working, held = Threads(1, "work", on_call=1), threading.Event()

    async def leave() -> None:
        working.run(name, held)

    asyncio.run(leave())
    held.set()

    async def come() -> None:
        assert await working.run(name) == "work-0"

    run(come)
    working.close()
