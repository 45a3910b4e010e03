"""The engine in this process and the one in another: whoever has one cannot tell which."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from ortserve.errors import (
    DeadlineExceeded,
    InferenceError,
    PayloadTooLarge,
    QueueFull,
    ShapeMismatch,
    ShuttingDown,
)
from tests.held_session import FAR_S, POISON, Held, rows, settings, values
from tests.runners import ask, asking, engine_of, run, until

KINDS = ("local", "remote")
both = pytest.mark.parametrize("kind", KINDS)


@both
def test_rows_of_one_moment_share_a_batch_and_each_has_its_answer(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        session = Held(held=False)
        async with engine_of(kind, tmp_path, session, settings()) as (engine, _):
            assert engine.available
            assert await asyncio.gather(*asking(engine, 1, 2, 3)) == [10, 20, 30]
        assert session.batches == [[1, 2, 3]]

    run(test)


@both
def test_an_answer_says_how_long_the_session_took(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(held=False), settings()) as (engine, _):
            (place,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            assert place.inference_s == 0
            with place:
                await place.infer(rows(1))
            assert 0 < place.inference_s < 1

    run(test)


@both
def test_a_full_queue_refuses_all_or_none_and_says_when_to_come_back(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(held=False), settings(max_queue_size=4)) as (engine, _):
            deadline = time.monotonic() + FAR_S
            places = engine.admit(3, deadline=deadline)
            with pytest.raises(QueueFull, match=r"room for 2 of 4 rows, 3 wait|room for 1 of 4 rows, 4 wait") as refused:
                engine.admit(2, deadline=deadline)
            assert refused.value.retry_after_s > 0
            engine.expect_room(deadline=deadline)
            with pytest.raises(QueueFull, match="room for 1 of 4 rows, 4 wait"):
                engine.expect_room(deadline=deadline, ahead=1)  # whose place it is, though it is not here yet
            (last,) = engine.admit(1, deadline=deadline)  # none of the two was kept
            with pytest.raises(QueueFull):
                engine.admit(1, deadline=deadline)
            with pytest.raises(QueueFull):
                engine.expect_room(deadline=deadline)
            with pytest.raises(PayloadTooLarge, match="at most 4"):
                engine.admit(5, deadline=deadline)
            for place in (*places, last):
                with place:
                    pass
            assert await asyncio.gather(*asking(engine, 1, 2, 3, 4)) == [10, 20, 30, 40]

    run(test)


@both
def test_rows_admitted_together_are_answered_as_one(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        session = Held(held=False)
        async with engine_of(kind, tmp_path, session, settings(max_queue_size=6)) as (engine, local):
            deadline = time.monotonic() + FAR_S
            with engine.admit_together(3, deadline=deadline) as place:
                assert values(await place.infer(rows(1, 2, 3))) == [10, 20, 30]
                assert 0 < place.inference_s < 1
            with engine.admit_together(2, deadline=deadline) as place, pytest.raises(ShapeMismatch, match="expected 2 rows in 'x'"):
                await place.infer(rows(1, 2, 3))
            with pytest.raises(PayloadTooLarge, match="at most 6"):
                engine.admit_together(7, deadline=deadline)
            with engine.admit_together(6, deadline=deadline) as place:  # more than a batch
                assert values(await place.infer(rows(1, 2, 3, 4, 5, 6))) == [10, 20, 30, 40, 50, 60]
            await until(lambda: local.rows_waiting == 0)
        assert session.batches[0] == [1, 2, 3]  # not cut apart where they fit

    run(test)


@both
def test_a_poisoned_row_fails_those_it_was_admitted_with_and_no_others(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(held=False), settings()) as (engine, local):
            with engine.admit_together(2, deadline=time.monotonic() + FAR_S) as place:
                together = asyncio.ensure_future(place.infer(rows(1, POISON)))
                assert await asyncio.gather(*asking(engine, 5, 6)) == [50, 60]
                with pytest.raises(InferenceError):
                    await together
            await until(lambda: local.rows_waiting == 0)

    run(test)


@both
def test_who_leaves_gives_back_the_places_of_all_rows(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(), settings(max_queue_size=4)) as (engine, local):
            with engine.admit_together(4, deadline=time.monotonic() + FAR_S):
                await until(lambda: local.rows_waiting == 4)
            await until(lambda: local.rows_waiting == 0)

    run(test)


@both
def test_a_deadline_is_kept_whatever_the_session_does(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        session = Held()
        async with engine_of(kind, tmp_path, session, settings(max_batch_size=1)) as (engine, _):
            first = asking(engine, 1)
            await until(lambda: session.batches == [[1]])
            with pytest.raises(DeadlineExceeded, match="before the request's deadline"):
                await ask(engine, 2, within_s=0.02)
            session.release(2)
            assert await asyncio.gather(*first, *asking(engine, 3)) == [10, 30]
        assert session.batches == [[1], [3]]  # what was late cost nothing

    run(test)


@both
def test_a_caller_that_leaves_costs_nothing(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        session = Held()
        async with engine_of(kind, tmp_path, session, settings(max_batch_size=1)) as (engine, local):
            first, gone = asking(engine, 1, 2)
            await until(lambda: session.batches == [[1]] and local.rows_waiting == 1)
            gone.cancel()
            await until(lambda: local.rows_waiting == 0)
            third = asking(engine, 3)
            session.release(2)
            assert await asyncio.gather(first, *third) == [10, 30]
        assert session.batches == [[1], [3]]

    run(test)


@both
def test_a_poisoned_row_fails_alone(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(held=False), settings()) as (engine, _):
            good, bad, other = await asyncio.gather(*asking(engine, 1, POISON, 3), return_exceptions=True)
            assert (good, other) == (10, 30)
            assert isinstance(bad, InferenceError)
            assert "secret" not in str(bad)

    run(test)


@both
def test_a_row_of_two_is_refused(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(held=False), settings()) as (engine, _):
            (place,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            with place, pytest.raises(ShapeMismatch, match="expected 1 rows in 'x'"):
                await place.infer(rows(1, 2))

    run(test)


@both
def test_a_place_is_for_one_row(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(held=False), settings()) as (engine, _):
            (place,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            with place:
                await place.infer(rows(1))
                with pytest.raises(RuntimeError, match="admit again"):
                    await place.infer(rows(1))
            (place,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            with place:
                pass
            with pytest.raises(RuntimeError, match="admit again"):
                await place.infer(rows(1))

    run(test)


@both
def test_closing_answers_what_was_admitted_and_takes_nothing_more(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        session = Held()
        async with engine_of(kind, tmp_path, session, settings(max_batch_size=1)) as (engine, _):
            asked = asking(engine, 1, 2)
            (undecoded,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            await until(lambda: session.batches == [[1]])
            closing = asyncio.ensure_future(engine.close())
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDown):
                engine.admit(1, deadline=time.monotonic() + FAR_S)
            session.release(3)
            with undecoded:
                assert values(await undecoded.infer(rows(3))) == [30]
            assert await asyncio.gather(*asked) == [10, 20]
            await closing

    run(test)
