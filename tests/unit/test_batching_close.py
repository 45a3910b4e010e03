"""The end of a batcher: what was admitted is answered or told, and no thread is left."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from ortserve.batching import Batcher
from ortserve.errors import ShuttingDown
from tests.held_session import FAR_S, Held, ask, asking, rows, run, settings, turns, values


def test_closing_answers_all_that_was_admitted_then_stops_its_threads() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings(max_in_flight=2, max_queue_delay_ms=1000.0))
        with batcher.admit(1, deadline=time.monotonic() + FAR_S) as decoding:
            tasks = asking(batcher, *(rows(value) for value in range(3)))
            await turns()
            assert batcher.in_flight == 0  # they wait for a fourth
            closes = [asyncio.create_task(batcher.close()) for _ in range(2)]
            await turns()
            assert batcher.in_flight == 2  # nobody else will come
            with pytest.raises(ShuttingDown):
                batcher.admit(1, deadline=time.monotonic() + FAR_S)
            session.release(9)
            assert await asyncio.gather(*tasks) == [[0], [10], [20]]
            await turns()
            assert not any(close.done() for close in closes)
            assert values(await decoding.infer(rows(9))) == [90]
        await asyncio.gather(*closes)
        await batcher.close()
        assert (batcher.rows_waiting, batcher.in_flight) == (0, 0)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch-")]

    run(test)


def test_closing_without_draining_fails_what_waits_and_ends_a_drain_under_way() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        decoding = batcher.admit(1, deadline=time.monotonic() + FAR_S)
        tasks = asking(batcher, rows(1), *(rows(value) for value in range(2, 8)))
        await turns()
        draining = asyncio.create_task(batcher.close())
        await turns()
        abandoned = asyncio.create_task(batcher.close(drain=False))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, ShuttingDown) for result in results)
        with pytest.raises(ShuttingDown):
            await decoding.infer(rows(1))
        assert not abandoned.done()  # a batch still runs
        session.release(1)
        await asyncio.gather(draining, abandoned)
        assert len(session.batches) == 1
        assert batcher.rows_waiting == 0

    run(test)


def test_a_batcher_nobody_used_closes() -> None:
    async def test() -> None:
        await batcher.close()

    batcher = Batcher(Held(), settings())
    run(test)


def test_a_batcher_refuses_a_second_event_loop() -> None:
    batcher = Batcher(Held(held=False), settings())

    async def use() -> None:
        assert await ask(batcher, rows(1)) == [10]

    async def misuse() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            batcher.admit(1, deadline=time.monotonic() + FAR_S)

    run(use)
    run(misuse)
    asyncio.run(batcher.close())
