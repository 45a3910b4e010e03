"""The order of the queue and the size of its batches, for any requests and any number of free slots."""

from __future__ import annotations

import asyncio
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ortserve.batch import Part, Request, kind_of, stack
from ortserve.fair_queue import FairQueue


class Never(asyncio.Future[None]):
    """A future that nobody awaits, so that a queue can be tested without an event loop."""

    def __init__(self) -> None:
        pass

    def __del__(self) -> None:
        pass


def request(rows: int, turn: int, *, kind: int = 0) -> Request:
    inputs = {"x": np.arange(rows * (kind + 1)).reshape(rows, kind + 1)}
    return Request(inputs, rows, 0.0, 0.0, kind_of(inputs, rows), Never(), turn=turn)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def started(batches: list[list[Part]], of: Request) -> list[int]:
    return [row for parts in batches for part in parts if part.request is of for row in range(part.start, part.stop)]


def drained(queue: FairQueue, free_slots: list[int]) -> list[list[Part]]:
    batches = []
    while queue:
        free = free_slots[len(batches) % len(free_slots)]
        before = queue.rows
        batches.append(queue.take(free))
        taken = sum(part.rows for part in batches[-1])
        assert 1 <= taken <= math.ceil(before / free)
        assert queue.rows == before - taken
    return batches


@given(sizes=sizes, kinds=st.lists(st.integers(0, 2), min_size=1), most=st.integers(1, 16), free=st.lists(st.integers(1, 4), min_size=1))
def test_every_row_starts_once_and_in_order_in_a_batch_of_its_kind(sizes: list[int], kinds: list[int], most: int, free: list[int]) -> None:
    queue = FairQueue(most)
    requests = [request(size, most, kind=kinds[index % len(kinds)]) for index, size in enumerate(sizes)]
    for each in requests:
        queue.append(each)
    batches = drained(queue, free)
    assert queue.rows == 0
    for each in requests:
        assert started(batches, each) == list(range(each.rows))
    for parts in batches:
        assert sum(part.rows for part in parts) <= most
        assert len({part.request.kind for part in parts}) == 1
        assert len(stack(parts, most)["x"]) == most  # like ones stack


@given(sizes=sizes, most=st.integers(1, 16), free=st.lists(st.integers(1, 4), min_size=1))
def test_requests_no_larger_than_a_batch_start_first_in_first_out(sizes: list[int], most: int, free: list[int]) -> None:
    queue = FairQueue(most)
    requests = [request(min(size, most), most) for size in sizes]
    for each in requests:
        queue.append(each)
    order = [part.request for parts in drained(queue, free) for part in parts]
    assert list(dict.fromkeys(order)) == requests
    assert all(order.index(each) + order.count(each) - 1 == len(order) - 1 - order[::-1].index(each) for each in requests)  # uninterrupted


@given(sizes=sizes, kinds=st.lists(st.integers(0, 2), min_size=1), most=st.integers(1, 16), free=st.lists(st.integers(1, 4), min_size=1))
def test_every_batch_begins_with_the_oldest_request(sizes: list[int], kinds: list[int], most: int, free: list[int]) -> None:
    queue = FairQueue(most)
    for index, size in enumerate(sizes):
        queue.append(request(min(size, most), most, kind=kinds[index % len(kinds)]))
    turn = 0
    while queue:
        oldest = list(queue)
        parts = queue.take(free[turn % len(free)])
        assert parts[0].request is oldest[0]
        assert list(queue) == [each for each in oldest if each.started < each.rows]
        turn += 1


@given(sizes=sizes, most=st.integers(1, 16))
def test_a_request_waits_for_at_most_one_batch_of_each_before_it(sizes: list[int], most: int) -> None:
    queue = FairQueue(most)
    for size in sizes:
        queue.append(request(size, most))
    last = request(1, most)
    queue.append(last)
    order = [part for parts in drained(queue, [1]) for part in parts]
    before = order[: next(index for index, part in enumerate(order) if part.request is last)]
    assert sum(part.rows for part in before) <= sum(min(size, most) for size in sizes)


@given(sizes=sizes, most=st.integers(1, 16), gone=st.sets(st.integers(0, 29)))
def test_what_is_removed_never_starts_and_the_rest_does(sizes: list[int], most: int, gone: set[int]) -> None:
    queue = FairQueue(most)
    requests = [request(size, most) for size in sizes]
    for each in requests:
        queue.append(each)
    first = queue.take(1)
    for index, each in enumerate(requests):
        if index in gone:
            already = len(started([first], each))
            assert queue.remove(each) == each.rows - already
            assert queue.remove(each) == 0
    assert queue.rows == sum(each.rows - each.started for each in requests)
    batches = [first, *drained(queue, [1])]
    for index, each in enumerate(requests):
        assert started(batches, each) == (started([first], each) if index in gone else list(range(each.rows)))
