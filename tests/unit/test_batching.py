"""The batcher, one behaviour at a time: a session that runs when the test says so, and the turns of a real event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from ortserve.batching import Batcher, Ticket
from ortserve.errors import DeadlineExceeded, InferenceError, PayloadTooLarge, QueueFull, RequestError, ShapeMismatch, ShuttingDown
from ortserve.profile import Batching
from ortserve.session import Tensors

POISON = -1.0
FAR_S = 60.0


class Held:
    """A session that computes 10 x in the order given, each batch only when `release` allows it; a row of POISON makes it raise."""

    def __init__(self, *, held: bool = True) -> None:
        self.batches: list[list[float]] = []
        self.inputs: list[Tensors] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self._gate: SimpleQueue[BaseException | None] | None = SimpleQueue() if held else None

    def release(self, batches: int = 1, error: BaseException | None = None) -> None:
        assert self._gate is not None
        for _ in range(batches):
            self._gate.put(error)

    def run(self, inputs: Tensors) -> Tensors:
        with self._lock:
            self.batches.append(inputs["x"][:, 0].tolist())
            self.inputs.append(inputs)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self._gate is not None and (error := self._gate.get(timeout=30)) is not None:
                raise error
            if (inputs["x"][:, 0] == POISON).any():
                raise ValueError("secret of the library")
            return {"y": inputs["x"] * 10}
        finally:
            with self._lock:
                self._now -= 1


class Notes:
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.started: list[tuple[int, int, int]] = []
        self.finished: list[tuple[int, int]] = []

    def queue_changed(self, rows: int) -> None:
        self.queue.append(rows)

    def batch_started(self, rows: int, in_flight: int, queue_s: Sequence[float]) -> None:
        assert all(wait_s >= 0 for wait_s in queue_s)
        self.started.append((rows, in_flight, len(queue_s)))

    def batch_finished(self, rows: int, in_flight: int, inference_s: float) -> None:
        assert inference_s >= 0
        self.finished.append((rows, in_flight))


def rows(*values: float, width: int = 2) -> Tensors:
    return {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}


def values(outputs: Tensors) -> list[float]:
    return outputs["y"][:, 0].tolist()  # type: ignore[no-any-return]


def settings(**changed: Any) -> Batching:
    return Batching(**{"max_batch_size": 4, "max_queue_size": 64, **changed})


async def ask(batcher: Batcher, inputs: Tensors, *, within_s: float = FAR_S) -> list[float]:
    with batcher.admit(len(inputs["x"]), deadline=time.monotonic() + within_s) as ticket:
        return values(await ticket.infer(inputs))


def asking(batcher: Batcher, *requests: Tensors) -> list[asyncio.Task[list[float]]]:
    return [asyncio.create_task(ask(batcher, inputs)) for inputs in requests]


async def turns(count: int = 5) -> None:
    """Let the event loop do what it can do without a batch finishing."""
    for _ in range(count):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(limited())


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
        class Slow(Held):
            def run(self, inputs: Tensors) -> Tensors:
                time.sleep(0.02)
                return super().run(inputs)

        notes = Notes()
        batcher = Batcher(Slow(held=False), settings(max_queue_size=8), observer=notes)
        await ask(batcher, rows(1))
        with batcher.admit(8, deadline=time.monotonic() + FAR_S), pytest.raises(QueueFull) as refused:
            batcher.admit(1, deadline=time.monotonic() + FAR_S)
        assert refused.value.retry_after_s >= 8 * 0.02
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
        with pytest.raises(DeadlineExceeded):
            await ask(batcher, rows(1), within_s=0.01)
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


def test_one_poisoned_request_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        session, notes = Held(held=False), Notes()
        batcher = Batcher(session, settings(max_batch_size=4, max_in_flight=2), observer=notes)
        tasks = asking(batcher, *(rows(value) for value in (1, 2, POISON, 4, 5, 6, 7, 8)))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results.pop(2), InferenceError)
        assert results == [[10.0 * value] for value in (1, 2, 4, 5, 6, 7, 8)]
        assert notes.finished[-1][1] == batcher.in_flight == 0
        assert [(size, parts) for size, _, parts in notes.started] == [(4, 4), (4, 4), *[(1, 0)] * 4]  # queue time counts once
        await batcher.close()

    with caplog.at_level(logging.ERROR, logger="ortserve.batching"):
        run(test)
    assert "a batch of 4 rows failed" in caplog.text


def test_the_log_has_the_exception_and_the_caller_reads_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        batcher = Batcher(Held(held=False), settings())
        with pytest.raises(InferenceError) as failed:
            await ask(batcher, rows(POISON))
        assert "secret" not in str(failed.value)
        await batcher.close()

    with caplog.at_level(logging.ERROR, logger="ortserve.batching"):
        run(test)
    assert "ValueError: secret of the library" in caplog.text


def test_a_failed_batch_is_not_run_again_for_callers_that_went_away() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        gone, stays = asking(batcher, rows(1), rows(2))
        await turns()
        gone.cancel()
        await turns()
        session.release(1, MemoryError("too large a batch"))
        session.release(1)
        assert await stays == [20]
        assert session.batches == [[1, 2], [2]]
        await batcher.close()

    run(test)


def test_a_part_that_fails_ends_the_whole_request_and_its_waiting_rows() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        large = asking(batcher, rows(*range(12)))[0]
        await turns()
        session.release(1, RuntimeError("device lost"))
        with pytest.raises(InferenceError):
            await large
        assert (batcher.in_flight, batcher.rows_waiting) == (0, 0)
        session.release(1)
        assert await ask(batcher, rows(50)) == [500]
        assert session.batches == [[0, 1, 2, 3], [50]]
        await batcher.close()

    run(test)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError])
def test_whatever_a_session_raises_its_slot_is_given_back(kind: type[BaseException]) -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        session.release(1, kind("stop"))
        with pytest.raises(InferenceError):
            await ask(batcher, rows(1))
        session.release()
        assert await ask(batcher, rows(2)) == [20]
        await batcher.close()

    run(test)


@pytest.mark.parametrize("wrong", [{"y": np.zeros((1, 2))}, {"y": np.float32(1)}, {"y": None}, None])
def test_an_answer_with_other_rows_than_asked_is_a_failure(wrong: Any) -> None:
    async def test() -> None:
        class Wrong:
            def run(self, inputs: Tensors) -> Tensors:
                assert inputs
                return wrong  # type: ignore[no-any-return]

        batcher = Batcher(Wrong(), settings())
        with pytest.raises(InferenceError):
            await ask(batcher, rows(1, 2))
        await batcher.close()

    run(test)


def test_what_the_session_refuses_reaches_the_caller_in_the_sessions_words() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings())
        session.release(1, ShapeMismatch("expected uint8"))
        with pytest.raises(ShapeMismatch, match="expected uint8"):
            await ask(batcher, rows(1))
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
                time.sleep(0.1)
                return super().run(inputs)

        batcher = Batcher(Slow(held=False), settings(max_batch_size=2, max_queue_delay_ms=1000.0))
        await ask(batcher, rows(1, 2))  # learns 50 ms a row
        assert await ask(batcher, rows(3), within_s=0.9) == [30]  # 1000 ms of delay would end past 900
        await batcher.close()

    run(test)


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


def test_an_answered_ticket_tells_the_time_in_the_session() -> None:
    async def test() -> None:
        batcher = Batcher(Held(held=False), settings())
        with batcher.admit(5, deadline=time.monotonic() + FAR_S) as ticket:
            assert ticket.inference_s == 0
            await ticket.infer(rows(1, 2, 3, 4, 5))
            assert ticket.inference_s > 0
        await batcher.close()

    run(test)


def test_a_failing_observer_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        class Broken(Notes):
            def queue_changed(self, rows: int) -> None:
                raise RuntimeError(f"no gauge for {rows}")

        batcher = Batcher(Held(held=False), settings(), observer=Broken())
        assert await ask(batcher, rows(1)) == [10]
        await batcher.close()

    run(test)
    assert "no gauge for 1" in caplog.text


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
