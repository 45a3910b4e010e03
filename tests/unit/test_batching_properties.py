"""Under any mix of sizes, delays, cancellations, deadlines and failures: every request is answered once, in its place, with its rows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, event, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ortserve.batching import Batcher
from ortserve.errors import DeadlineExceeded, InferenceError, PayloadTooLarge, QueueFull
from ortserve.execution import Batching
from ortserve.session import Tensors


@dataclass(frozen=True)
class Plan:
    """What one caller will do; times in turns of the event loop."""

    rows: int
    arrives: int
    decodes: int
    poisoned: bool
    width: int  # requests of unlike width do not stack, unless they are ragged and near each other
    within_s: float
    cancelled_after: int | None


plans = st.builds(
    Plan,
    rows=st.one_of(st.integers(1, 3), st.integers(1, 20)),
    arrives=st.integers(0, 12),
    decodes=st.integers(0, 4),
    poisoned=st.sampled_from([False] * 7 + [True]),
    width=st.sampled_from([3, 3, 3, 4, 7, 13]),
    within_s=st.sampled_from([60.0, 60.0, 60.0, 0.004, 0.0]),
    cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 20)),
)


@st.composite
def batchings(draw: st.DrawFn) -> Batching:
    most = draw(st.integers(1, 8))
    buckets = draw(st.one_of(st.just(()), st.sets(st.integers(1, most)).map(lambda some: tuple(sorted(some | {most})))))
    return Batching(
        max_batch_size=most,
        max_in_flight=draw(st.integers(1, 3)),
        max_queue_size=draw(st.integers(most, 60)),
        max_queue_delay_ms=draw(st.sampled_from([0.0, 0.0, 1.0])),
        buckets=buckets,
        sequence_buckets=draw(st.sampled_from([(4, 8, 16), (5,), ()])),
        max_batch_tokens=draw(st.sampled_from([None, None, 1, 24])),
    )


class Checked:
    """A session of random pace that checks what a batch may look like, counts each row it sees, and fails on a poisoned one."""

    def __init__(self, settings: Batching, pauses_ms: Sequence[int], *, ragged: bool) -> None:
        self.ragged = ragged
        self.seen: Counter[tuple[int, int]] = Counter()
        self.problems: list[str] = []
        self._settings = settings
        self._pauses_ms = pauses_ms
        self._batches = self._now = 0
        self._lock = threading.Lock()

    def run(self, inputs: Tensors) -> Tensors:
        x = inputs["x"]
        real = x[x[:, 0] > 0]  # requests are numbered from 1, padding is zeros
        with self._lock:
            self._now += 1
            pause_ms = self._pauses_ms[self._batches % len(self._pauses_ms)]
            self._batches += 1
            self.seen.update((int(row[0]), int(row[1])) for row in real)
            self._expect(self._now <= self._settings.max_in_flight, f"{self._now} batches at once")
            self._expect(1 <= len(real) <= len(x) <= self._settings.max_batch_size, f"{len(real)} of {len(x)} rows")
            buckets = self._settings.buckets or (len(real),)
            self._expect(len(x) == min(size for size in buckets if size >= len(real)), f"{len(real)} rows padded to {len(x)}")
            self._expect(not x[len(real) :].any(), "padding is not zeros at the end")
            self._expect_alike(x, real)
        time.sleep(pause_ms / 1000)  # the pace of a device, not a synchronisation
        with self._lock:
            self._now -= 1
        if (real[:, 2] != 0).any():
            raise ValueError("poisoned")
        return {"x": x[:, :3], "sum": x.sum(axis=1)}

    def _expect_alike(self, x: NDArray[np.int64], real: NDArray[np.int64]) -> None:
        """Ragged rows share a bucket, are padded no further than they must, and are no more tokens than a batch holds."""
        if not self.ragged:
            return
        lengths = 3 + (real[:, 3:] != 0).sum(axis=1)
        bounds = {next((bound for bound in self._settings.sequence_buckets if bound >= length), int(length)) for length in lengths}
        self._expect(len(bounds) == 1, f"rows of {sorted(lengths)} tokens together")
        bound = bounds.pop()
        self._expect(x.shape[1] == (bound if self._settings.buckets else max(lengths)), f"{sorted(lengths)} padded to {x.shape[1]}")
        most = self._settings.max_batch_tokens
        self._expect(most is None or len(real) == 1 or len(real) * bound <= most, f"{len(real)} rows of {bound} tokens")

    def _expect(self, right: bool, problem: str) -> None:
        if not right:
            self.problems.append(problem)


class World:
    """The callers of one example and what they may rightly find."""

    def __init__(self, settings: Batching, pauses_ms: Sequence[int], *, ragged: bool = False) -> None:
        self.settings = settings
        self.session = Checked(settings, pauses_ms, ragged=ragged)
        self.batcher = Batcher(self.session, settings, ragged={"x"} if ragged else (), observer=self)
        self.problems = self.session.problems
        self.decoding = 0  # rows admitted and not yet given to infer
        self.turn = self.last_infer = 0
        self.outcomes: Counter[str] = Counter()

    def queue_changed(self, rows: int) -> None:
        self.expect(0 <= rows == self.batcher.rows_waiting <= self.settings.max_queue_size, f"{rows} rows in the queue")

    def batch_started(self, rows: int, in_flight: int, queue_s: Sequence[float]) -> None:
        self.expect(1 <= in_flight <= self.settings.max_in_flight, f"{in_flight} in flight")
        self.expect(1 <= rows <= self.settings.max_batch_size and len(queue_s) <= rows, f"{rows} rows of {queue_s}")

    def batch_padded(self, tokens: int, padding_tokens: int) -> None:
        self.expect(self.session.ragged and tokens > 0 and padding_tokens >= 0, f"{tokens} tokens and {padding_tokens} of padding")

    def batch_finished(self, rows: int, in_flight: int, inference_s: float) -> None:
        self.expect(0 <= in_flight <= self.settings.max_in_flight, f"{in_flight} in flight")
        self.expect(1 <= rows <= self.settings.max_batch_size and inference_s > 0, f"{rows} rows in {inference_s} s")

    async def watch(self) -> None:
        """No slot idles while rows that have their inputs wait; the last infer may have been in this turn or the one before."""
        while True:
            await asyncio.sleep(0)
            self.turn += 1
            idle = self.batcher.in_flight < self.settings.max_in_flight and self.batcher.rows_waiting > self.decoding
            if idle and not self.settings.max_queue_delay_ms and self.turn > self.last_infer + 2:
                self.problems.append("a slot idles while rows wait")

    async def call(self, number: int, plan: Plan) -> None:
        for _ in range(plan.arrives):
            await asyncio.sleep(0)
        try:
            outcome = await self.ask(number, plan)
        except asyncio.CancelledError:
            self.outcomes["cancelled"] += 1
            if plan.cancelled_after is None:
                self.problems.append(f"{plan} was cancelled by nobody")
            raise
        self.outcomes[outcome] += 1

    async def ask(self, number: int, plan: Plan) -> str:
        deadline = time.monotonic() + plan.within_s
        limit, waiting = self.settings.max_queue_size, self.batcher.rows_waiting
        try:
            ticket = self.batcher.admit(plan.rows, deadline=deadline)
        except QueueFull as error:
            no_time = waiting > 0 and self.batcher.drain_s > 0.8 * (deadline - time.monotonic())
            self.expect((waiting + plan.rows > limit or no_time) and error.retry_after_s >= 0, "refused with room and time")
            return "queue full"
        except PayloadTooLarge:
            self.expect(plan.rows > limit, "refused as too large")
            return "too large"
        self.expect(waiting + plan.rows <= limit, "admitted over the bound")
        with ticket:
            self.decoding += plan.rows
            try:
                for _ in range(plan.decodes):
                    await asyncio.sleep(0)
            finally:
                self.decoding -= plan.rows
                self.last_infer = self.turn
            x = np.zeros((plan.rows, plan.width), np.int64)
            x[:, 0], x[:, 1] = number, np.arange(plan.rows)
            x[-1, 2] = plan.poisoned
            x[:, 3:] = 1  # tells how long a row is
            try:
                outputs = await ticket.infer({"x": x})
            except InferenceError:
                self.expect(plan.poisoned, f"{plan} failed for a neighbour")
                return "poisoned"
            except DeadlineExceeded:
                self.expect(time.monotonic() >= deadline - 0.002, f"{plan} was given up early")  # 2 ms: loops that count in ms
                return "late"
            self.expect(not plan.poisoned, "a poisoned row was answered")
            self.expect(plan.within_s > 0, "computed after its deadline")
            self.expect(np.array_equal(outputs["x"], x[:, :3]) and np.array_equal(outputs["sum"], x.sum(axis=1)), f"{plan} got other rows")
            counts = {self.session.seen[number, row] for row in range(plan.rows)}
            self.expect(counts <= {1, 2}, f"rows computed {counts} times")
            return "answered"

    def expect(self, right: bool, problem: str) -> None:
        if not right:
            self.problems.append(problem)


async def cancel_later(task: asyncio.Task[None], turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()


async def live(settings: Batching, pauses_ms: Sequence[int], callers: Sequence[Plan], drain: bool, ragged: bool) -> World:
    world = World(settings, pauses_ms, ragged=ragged)
    async with asyncio.timeout(60):
        watcher = asyncio.create_task(world.watch())
        tasks = [asyncio.create_task(world.call(number, plan)) for number, plan in enumerate(callers, start=1)]
        killers = [
            asyncio.create_task(cancel_later(task, plan.arrives + plan.cancelled_after))
            for task, plan in zip(tasks, callers, strict=True)
            if plan.cancelled_after is not None
        ]
        await asyncio.gather(*tasks, *killers, return_exceptions=True)
        watcher.cancel()
        world.expect(all(task.cancelled() or task.exception() is None for task in tasks), f"{tasks}")
        world.expect(world.batcher.rows_waiting == 0, "rows wait though everybody left")
        await world.batcher.close(drain=drain)
        world.expect(world.batcher.in_flight == 0, "a batch outlived close")
    return world


@given(
    settings=batchings(),
    pauses_ms=st.lists(st.integers(0, 3), min_size=1),
    callers=st.lists(plans, max_size=24),
    drain=st.booleans(),
    ragged=st.booleans(),
)
@hypothesis_settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_every_request_ends_once_and_rightly(
    settings: Batching, pauses_ms: list[int], callers: list[Plan], drain: bool, ragged: bool
) -> None:
    world = asyncio.run(live(settings, pauses_ms, callers, drain, ragged))
    assert world.problems == []
    assert world.outcomes.total() <= len(callers)  # a caller cancelled before its first turn never ran
    assert world.outcomes.total() >= sum(plan.cancelled_after is None for plan in callers)
    if not any(plan.poisoned for plan in callers):
        assert set(world.session.seen.values()) <= {1}
    for outcome in world.outcomes:
        event(outcome)


@given(settings=batchings(), pauses_ms=st.lists(st.integers(0, 2), min_size=1), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=16))
@hypothesis_settings(deadline=None, max_examples=60)
def test_a_drain_answers_all_that_was_admitted(settings: Batching, pauses_ms: list[int], sizes: list[int]) -> None:
    async def test() -> Counter[str]:
        world = World(settings, pauses_ms)
        async with asyncio.timeout(60):
            plan = {"arrives": 0, "decodes": 3, "poisoned": False, "width": 3, "within_s": 60.0, "cancelled_after": None}
            tasks = [asyncio.create_task(world.call(number, Plan(rows=rows, **plan))) for number, rows in enumerate(sizes, start=1)]
            await asyncio.sleep(0)  # admitted and decoding
            await world.batcher.close()
            assert world.batcher.rows_waiting == world.batcher.in_flight == 0
            await asyncio.gather(*tasks)
        assert world.problems == []
        return world.outcomes

    outcomes = asyncio.run(test())
    assert outcomes.total() == len(sizes)
    assert set(outcomes) <= {"answered", "queue full", "too large"}
