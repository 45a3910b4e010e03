"""The batcher and its callers: the bounded queue, deadlines, those who go away, and what a ticket may be used for."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from ortserve.batching import Batcher, Ticket
from ortserve.errors import DeadlineExceeded, PayloadTooLarge, QueueFull, RequestError, ShapeMismatch
from ortserve.session import Tensors
from tests.held_session import FAR_S, Held, Notes, ask, asking, rows, run, settings, skip, turns


class Slow(Held):
    """Takes 20 ms for each batch."""

    def run(self, inputs: Tensors) -> Tensors:
        time.sleep(0.02)
        return super().run(inputs)


def test_the_queue_is_bounded_from_admission_on_and_says_when_to_come_back() -> None:
    async def test() -> None:
        batcher = Batcher(Held(held=False), settings(max_queue_size=4))
        deadline = time.monotonic() + FAR_S
        with batcher.admit(3, deadline=deadline):
            assert batcher.rows_waiting == 3
            with pytest.raises(QueueFull, match=r"room for 2 of 4 rows, 3 wait") as refused:
                batcher.admit(2, deadline=deadline)
            assert refused.value.retry_after_s > 0
            with batcher.admit(1, deadline=deadline):
                assert batcher.rows_waiting == 4
            with pytest.raises(PayloadTooLarge, match="at most 4 rows"):
                batcher.admit(5, deadline=deadline)
            with pytest.raises(RequestError, match="1 row or more"):
                batcher.admit(0, deadline=deadline)
        assert batcher.rows_waiting == 0
        await batcher.close()

    run(test)


def test_retry_after_is_the_queue_over_recent_throughput() -> None:
    async def test() -> None:
        notes = Notes()
        batcher = Batcher(Slow(held=False), settings(max_queue_size=8), observer=notes)
        await ask(batcher, rows(1))
        with batcher.admit(8, deadline=time.monotonic() + FAR_S), pytest.raises(QueueFull) as refused:
            batcher.admit(1, deadline=time.monotonic() + FAR_S)
        assert refused.value.retry_after_s >= 8 * 0.02
        await batcher.close()

    run(test)


def test_who_could_not_be_answered_in_time_is_refused_at_once_and_whoever_has_the_time_is_let_in() -> None:
    async def test() -> None:
        batcher = Batcher(Slow(held=False), settings(max_queue_size=100, max_in_flight=1))
        batcher.expect_room(100, deadline=time.monotonic() + 0.001)  # nothing is known yet of how long a row takes
        await ask(batcher, rows(1))
        batcher.expect_room(1, deadline=time.monotonic() + 0.001)  # nobody waits
        with batcher.admit(50, deadline=time.monotonic() + FAR_S):
            with pytest.raises(QueueFull, match=r"expected an answer within 0\.[45] s, those who wait already take \d+\.\d s") as refused:
                batcher.admit(1, deadline=time.monotonic() + 0.5)
            assert refused.value.retry_after_s >= 50 * 0.02
            with batcher.admit(1, deadline=time.monotonic() + FAR_S):
                assert batcher.rows_waiting == 51
        await batcher.close()

    run(test)


def test_a_request_whose_deadline_passes_in_the_queue_hears_at_once_and_is_never_computed() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        first = asking(batcher, rows(1))
        await turns()
        with pytest.raises(DeadlineExceeded):  # while the only slot is held
            await ask(batcher, rows(2), within_s=0.01)
        assert batcher.rows_waiting == 0
        session.release(2)
        assert await asyncio.gather(*first, *asking(batcher, rows(3))) == [[10], [30]]
        assert session.batches == [[1], [3]]
        await batcher.close()

    run(test)


def test_a_deadline_that_passed_while_the_loop_was_busy_costs_no_compute() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        tasks = [asyncio.create_task(ask(batcher, rows(1))), asyncio.create_task(ask(batcher, rows(2), within_s=0.02))]
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)  # before the batcher's own turn
        await asyncio.sleep(0)
        session.release()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[0] == [10]
        assert isinstance(results[1], DeadlineExceeded)
        assert session.batches == [[1]]
        await batcher.close()

    run(test)


def test_a_request_that_runs_past_its_deadline_hears_at_the_deadline_and_its_result_is_thrown_away() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        late = asyncio.create_task(ask(batcher, rows(1), within_s=10.0))
        await turns()
        assert batcher.in_flight == 1
        skip(10.0)
        with pytest.raises(DeadlineExceeded):
            await late
        assert batcher.in_flight == 1  # still held
        session.release(2)
        assert await ask(batcher, rows(2)) == [20]
        await batcher.close()

    run(test)


def test_a_ticket_decoded_past_its_deadline_is_not_queued() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        with batcher.admit(1, deadline=time.monotonic() - 1) as ticket:
            assert ticket.remaining_s() < 0
            with pytest.raises(DeadlineExceeded):
                await ticket.infer(rows(1))
        await turns()
        assert (batcher.rows_waiting, session.batches) == (0, [])
        await batcher.close()

    run(test)


def test_a_caller_that_went_away_is_dropped_from_the_queue_and_from_the_rest_of_its_split() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        split = asking(batcher, rows(*range(1, 9)))[0]
        await turns()
        gone, stays = asking(batcher, rows(20), rows(30))
        await turns()
        assert batcher.rows_waiting == 6
        split.cancel()
        gone.cancel()
        await turns()
        assert batcher.rows_waiting == 1
        session.release(2)
        assert await stays == [300]
        assert session.batches == [[1, 2, 3, 4], [30]]
        assert split.cancelled()
        assert gone.cancelled()
        await batcher.close()

    run(test)


def test_a_ticket_left_while_another_task_still_infers_gives_everything_back() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        with batcher.admit(8, deadline=time.monotonic() + FAR_S) as ticket:
            infers = asyncio.create_task(ticket.infer(rows(*range(8))))
            await turns()
        assert batcher.rows_waiting == 0
        await turns()
        assert infers.cancelled()
        session.release()
        await batcher.close()
        assert len(session.batches) == 1

    run(test)


@pytest.mark.parametrize("inputs", [{}, rows(1), {"x": np.float32(1)}, {**rows(1, 2), "z": np.zeros((3, 1))}])
def test_inputs_without_the_admitted_rows_are_refused_before_they_reach_a_batch(inputs: Tensors) -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        with batcher.admit(2, deadline=time.monotonic() + FAR_S) as ticket, pytest.raises(ShapeMismatch, match="2 rows"):
            await ticket.infer(inputs)
        await turns()
        assert (session.batches, batcher.rows_waiting) == ([], 0)
        await batcher.close()

    run(test)


def test_a_ticket_answers_once() -> None:
    async def test() -> None:
        batcher = Batcher(Held(held=False), settings())
        with batcher.admit(1, deadline=time.monotonic() + FAR_S) as ticket:
            await ticket.infer(rows(1))
            with pytest.raises(RuntimeError, match="admit again"):
                await ticket.infer(rows(1))
        await batcher.close()

    run(test)


def test_an_answered_ticket_tells_the_time_in_the_session() -> None:
    async def test() -> None:
        batcher = Batcher(Held(held=False), settings())
        with batcher.admit(5, deadline=time.monotonic() + FAR_S) as ticket:
            assert ticket.inference_s == 0
            await ticket.infer(rows(1, 2, 3, 4, 5))
            assert ticket.inference_s > 0
        await batcher.close()

    run(test)


def test_a_ticket_left_by_an_error_gives_its_place_back() -> None:
    async def test() -> None:
        batcher = Batcher(Held(), settings())
        with pytest.raises(ZeroDivisionError), batcher.admit(2, deadline=time.monotonic() + FAR_S) as ticket:
            decode(ticket)
        assert batcher.rows_waiting == 0
        await batcher.close()

    def decode(ticket: Ticket) -> None:
        assert 0 < ticket.remaining_s() <= FAR_S
        raise ZeroDivisionError

    run(test)
