"""Rows of unlike length: which share a batch, how far they are padded, and what is told of it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from ortserve.batching import Batcher
from ortserve.errors import ShapeMismatch
from ortserve.session import Tensors
from tests.held_session import Held, Notes, ask, asking, run, settings, turns

RAGGED = {"sequence_buckets": (4, 8, 16), "max_batch_size": 8}


def text(value: float, length: int) -> Tensors:
    """One row of `length` tokens, told by its first."""
    return {"x": np.full((1, length), value, np.float32)}


def test_rows_of_like_length_go_together_padded_with_zeros_to_the_longest() -> None:
    async def test() -> None:
        session, notes = Held(), Notes()
        batcher = Batcher(session, settings(**RAGGED), ragged={"x"}, observer=notes)
        first = asking(batcher, text(1, 2))
        await turns()
        tasks = asking(batcher, text(2, 3), text(3, 7), text(4, 2), text(5, 5), text(6, 40))
        await turns()
        session.release(4)
        assert await asyncio.gather(*first, *tasks) == [[10], [20], [30], [40], [50], [60]]
        assert session.batches == [[1], [2, 4], [3, 5], [6]]
        assert [inputs["x"].tolist() for inputs in session.inputs[1:3]] == [
            [[2, 2, 2], [4, 4, 0]],
            [[3, 3, 3, 3, 3, 3, 3], [5, 5, 5, 5, 5, 0, 0]],
        ]
        assert notes.padded == [(2, 0), (5, 1), (12, 2), (40, 0)]
        await batcher.close()

    run(test)


def test_a_batch_holds_no_more_tokens_than_its_bound_and_a_longer_row_runs_alone() -> None:
    async def test() -> None:
        session = Held()
        batcher = Batcher(session, settings(**RAGGED, max_batch_tokens=16), ragged={"x"})
        first = asking(batcher, text(1, 2))
        await turns()
        tasks = asking(batcher, *(text(value, 7) for value in (2, 3, 4)), *(text(value, 30) for value in (5, 6)))
        await turns()
        session.release(5)
        await asyncio.gather(*first, *tasks)
        assert session.batches == [[1], [2, 3], [4], [5], [6]]
        await batcher.close()

    run(test)


def test_short_and_long_rows_at_once_leave_no_slot_idle() -> None:
    async def test() -> None:
        session, notes = Held(), Notes()
        batcher = Batcher(session, settings(**RAGGED, max_in_flight=2), ragged={"x"}, observer=notes)
        tasks = asking(batcher, text(1, 16), *(text(value, 3) for value in (2, 3, 4)))
        await turns()
        assert notes.started == [(1, 1, 1), (3, 2, 3)]  # the long one alone, and those behind it at the same time
        session.release(2)
        assert await asyncio.gather(*tasks) == [[10], [20], [30], [40]]
        await batcher.close()

    run(test)


def test_fixed_batch_sizes_ask_for_fixed_lengths_too() -> None:
    async def test() -> None:
        session, notes = Held(held=False), Notes()
        batcher = Batcher(session, settings(sequence_buckets=(4, 8), buckets=(2, 4)), ragged={"x"}, observer=notes)
        assert await ask(batcher, text(3, 5)) == [30]
        assert session.inputs[0]["x"].tolist() == [[3, 3, 3, 3, 3, 0, 0, 0], [0] * 8]
        assert notes.padded == [(5, 11)]
        await batcher.close()

    run(test)


def test_a_lone_row_is_handed_on_without_a_copy() -> None:
    async def test() -> None:
        session, inputs = Held(held=False), text(1, 5)
        batcher = Batcher(session, settings(**RAGGED), ragged={"x"})
        await ask(batcher, inputs)
        assert np.shares_memory(session.inputs[0]["x"], inputs["x"])
        await batcher.close()

    run(test)


def test_a_request_of_several_rows_is_split_and_put_together() -> None:
    async def test() -> None:
        session = Held(held=False)
        batcher = Batcher(session, settings(**RAGGED, max_batch_tokens=16), ragged={"x"})
        rows = {"x": np.repeat(np.arange(1, 6, dtype=np.float32)[:, None], 7, axis=1)}
        assert await ask(batcher, rows) == [10, 20, 30, 40, 50]
        assert session.batches == [[1, 2], [3, 4], [5]]
        await batcher.close()

    run(test)


def test_tensors_of_one_request_must_be_of_one_length() -> None:
    async def test() -> None:
        batcher = Batcher(Held(held=False), settings(), ragged={"x", "mask"})
        with pytest.raises(ShapeMismatch, match="expected tensors of one length, got 2, 3"):
            await ask(batcher, {"x": np.zeros((1, 3)), "mask": np.zeros((1, 2))})
        await batcher.close()

    run(test)


def test_a_model_whose_rows_are_all_alike_is_told_nothing_of_tokens() -> None:
    async def test() -> None:
        notes = Notes()
        batcher = Batcher(Held(held=False), settings(), observer=notes)
        await ask(batcher, text(1, 5))
        assert notes.padded == []
        await batcher.close()

    run(test)
