"""The batcher when a session fails: a poisoned request fails alone, no slot is lost and nothing leaks to a caller."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest

from ortserve.batching import Batcher
from ortserve.errors import InferenceError, ShapeMismatch
from ortserve.session import Tensors
from tests.held_session import POISON, Held, Notes, ask, asking, rows, run, settings, turns


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
