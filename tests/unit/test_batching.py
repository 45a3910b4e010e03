"""How the batcher makes batches: when they start, what they carry and who gets which rows back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from ortserve.batching import Batcher
from ortserve.session import Tensors
from tests.held_session import Held, Notes, ask, asking, rows, run, settings, turns


def test_a_free_slot_starts_at_once_and_the_next_batch_grows_while_it_runs() -> None:
    async def test() -> None:
        session, notes = Held(), Notes()
        batcher = Batcher(session, settings(), observer=notes)
        first = asking(batcher, rows(1))
        await turns()
        assert (batcher.in_flight, batcher.rows_waiting) == (1, 0)
        others = asking(batcher, *(rows(value) for value in (2, 3, 4, 5, 6)))
        await turns()
        assert (batcher.in_flight, batcher.rows_waiting) == (1, 5)
        session.release(3)
        assert await asyncio.gather(*first, *others) == [[10.0 * value] for value in (1, 2, 3, 4, 5, 6)]
        assert session.batches == [[1], [2, 3, 4, 5], [6]]
        assert [(size, parts) for size, _, parts in notes.started] == [(1, 1), (4, 4), (1, 1)]
        assert [size for size, _ in notes.finished] == [1, 4, 1]
        assert (max(notes.queue), notes.queue[-1]) == (5, 0)
        await batcher.close()

    run(test)


def test_the_observer_hears_of_a_batch_once_its_callers_have_their_answers() -> None:
    async def test() -> None:
        notes = Notes()
        batcher = Batcher(Held(held=False), settings(), observer=notes)
        assert await ask(batcher, rows(1)) == [10]
        assert notes.finished == []
        await asyncio.sleep(0)
        assert notes.finished == [(1, 0)]
        await batcher.close()

    run(test)


def test_the_observer_hears_last_what_is_in_flight_then() -> None:
    """A caller that wakes may start the next batch before the observer hears that its own has finished."""

    class Gauge(Notes):
        in_flight = 0

        def batch_started(self, rows: int, in_flight: int, queue_s: Sequence[float]) -> None:
            super().batch_started(rows, in_flight, queue_s)
            self.in_flight = in_flight

        def batch_finished(self, rows: int, in_flight: int, inference_s: float) -> None:
            super().batch_finished(rows, in_flight, inference_s)
            self.in_flight = in_flight

    async def test() -> None:
        session, gauge = Held(), Gauge()
        batcher = Batcher(session, settings(max_batch_size=2, max_queue_delay_ms=1000), observer=gauge)

        async def last() -> None:
            await ask(batcher, rows(1, 2))
            await batcher.close()  # who waits for company waits no longer

        closing = asyncio.create_task(last())
        await turns()
        waiting = asking(batcher, rows(3))
        await turns()
        assert (batcher.in_flight, batcher.rows_waiting) == (1, 1)
        session.release(1)
        while len(gauge.finished) < 1:
            await asyncio.sleep(0.001)
        assert gauge.in_flight == batcher.in_flight == 1
        session.release(1)
        assert await asyncio.gather(*waiting) == [[30]]
        await closing

    run(test)


def test_requests_that_become_ready_together_share_the_first_batch() -> None:
    async def test() -> None:
        session = Held(held=False)
        batcher = Batcher(session, settings())
        await asyncio.gather(*asking(batcher, rows(1), rows(2), rows(3)))
        assert session.batches == [[1, 2, 3]]
        await batcher.close()

    run(test)


@pytest.mark.parametrize(
    ("slots", "waiting", "expected"), [(2, 8, [4, 4]), (2, 3, [2, 1]), (3, 4, [2, 1, 1]), (4, 2, [1, 1]), (2, 20, [4, 4])]
)
def test_with_several_slots_free_a_batch_takes_its_share(slots: int, waiting: int, expected: list[int]) -> None:
    async def test() -> None:
        session, notes = Held(), Notes()
        batcher = Batcher(session, settings(max_in_flight=slots), observer=notes)
        tasks = asking(batcher, *(rows(value) for value in range(waiting)))
        await turns()
        assert [size for size, _, _ in notes.started] == expected
        session.release(waiting)
        await asyncio.gather(*tasks)
        assert session.most_at_once <= slots
        await batcher.close()

    run(test)


def test_a_large_request_is_split_and_put_together_in_order_though_its_batches_end_in_any() -> None:
    async def test() -> None:
        class LastFirst(Held):
            def __init__(self) -> None:
                super().__init__(held=False)
                self.second_done = threading.Event()

            def run(self, inputs: Tensors) -> Tensors:
                if inputs["x"][0, 0] == 0:
                    assert self.second_done.wait(30)
                outputs = super().run(inputs)
                if inputs["x"][0, 0] == 4:
                    self.second_done.set()
                return outputs

        batcher = Batcher(LastFirst(), settings(max_in_flight=2))
        assert await ask(batcher, rows(*range(10))) == [10.0 * value for value in range(10)]
        await batcher.close()

    run(test)


def test_a_batch_carries_the_tail_of_one_request_and_the_head_of_another() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        tasks = asking(batcher, rows(0), rows(1, 2, 3), rows(4, 5, 6), rows(7, 8))
        session.release(3)
        assert await asyncio.gather(*tasks) == [[0], [10, 20, 30], [40, 50, 60], [70, 80]]
        assert session.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
        await batcher.close()

    run(test)


def test_a_huge_request_costs_those_behind_it_one_batch() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        huge = asking(batcher, rows(*range(20)))
        small = asking(batcher, rows(100))
        await turns()
        session.release(2)
        assert await small[0] == [1000]
        assert session.batches[:2] == [[0, 1, 2, 3], [100, 4, 5, 6]]
        session.release(9)
        assert await huge[0] == [10.0 * value for value in range(20)]
        await batcher.close()

    run(test)


def test_batches_are_padded_with_zeros_to_the_next_bucket_and_answers_cut_back() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings(buckets=(2, 4)))
        tasks = asking(batcher, rows(1))
        await turns()
        tasks += asking(batcher, rows(2), rows(3, 4))
        await turns()
        session.release(2)
        assert await asyncio.gather(*tasks) == [[10], [20], [30, 40]]
        assert session.batches == [[1, 0], [2, 3, 4, 0]]
        await batcher.close()

    run(test)


def test_a_batch_of_one_whole_request_is_handed_on_without_a_copy() -> None:
    async def test() -> None:
        session, inputs = Held(held=False), rows(1, 2)
        batcher = Batcher(session, settings())
        await ask(batcher, inputs)
        assert np.shares_memory(session.inputs[0]["x"], inputs["x"])
        await batcher.close()

    run(test)


def test_inputs_that_do_not_stack_run_apart_and_keep_their_order() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings(max_batch_size=8))
        first = asking(batcher, rows(0))
        await turns()
        other = {"x": np.full((1, 2), 5, np.float64)}
        tasks = asking(batcher, rows(1), rows(2, width=3), other, rows(3), rows(4, width=3))
        await turns()
        session.release(4)
        assert await asyncio.gather(*first, *tasks) == [[0], [10], [20], [50], [30], [40]]
        assert session.batches == [[0], [1, 3], [2, 4], [5]]
        await batcher.close()

    run(test)


def test_a_delay_waits_for_a_full_batch_and_no_longer() -> None:
    async def test() -> None:
        session = Held(held=False)
        batcher = Batcher(session, settings(max_queue_delay_ms=1000.0))
        tasks = asking(batcher, rows(1), rows(2), rows(3))
        await turns()
        assert (batcher.in_flight, session.batches) == (0, [])
        tasks += asking(batcher, rows(4))
        await turns(3)
        assert batcher.rows_waiting == 0  # full: nothing to wait for
        await asyncio.gather(*tasks)
        assert session.batches == [[1, 2, 3, 4]]
        await batcher.close()

    run(test)


def test_a_delay_ends_by_itself() -> None:
    async def test() -> None:
        session = Held(held=False)
        batcher = Batcher(session, settings(max_queue_delay_ms=20.0))
        started = time.monotonic()
        await asyncio.gather(*asking(batcher, rows(1), rows(2)))
        assert time.monotonic() - started >= 0.02
        assert session.batches == [[1, 2]]
        await batcher.close()

    run(test)


def test_a_delay_does_not_wait_a_request_past_its_use() -> None:
    async def test() -> None:
        class Slow(Held):
            def run(self, inputs: Tensors) -> Tensors:
                time.sleep(0.4)
                return super().run(inputs)

        batcher = Batcher(Slow(held=False), settings(max_batch_size=2, max_queue_delay_ms=1000.0))
        await ask(batcher, rows(1, 2))  # learns 200 ms a row
        assert await ask(batcher, rows(3), within_s=1.3) == [30]  # 1000 ms of delay and 400 to run would end past 1300
        await batcher.close()

    run(test)
