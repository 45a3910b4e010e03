"""Threads without the interpreter give what a call gives, to whoever still waits for it, and leave nothing behind."""

from __future__ import annotations

import asyncio
import io
import select
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ortserve import jpeg
from ortserve.decoding import AHEAD, AHEAD_PRESSED, DecodingThreads
from ortserve.errors import ShuttingDown

P = ParamSpec("P")
BILINEAR = Image.Resampling.BILINEAR


def job(seed: int, width: int = 200, height: int = 150) -> jpeg.Job:
    """A picture of its own, to be decoded and resized."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    wanted = jpeg.job(file.getvalue(), 1, (width, height), (80, 60), (5, 6, 70, 50), BILINEAR)
    assert wanted is not None
    return wanted


def cut_off(whole: jpeg.Job) -> jpeg.Job:
    return replace(whole, data=whole.data[:-300])


def in_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """The test in an event loop of its own, which ends a test that hangs."""

    @wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 60))

    return run


def threads_here() -> list[int]:
    """Those that decode, by the name they have in the kernel."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # it ended meanwhile
            if (task / "comm").read_text(encoding="ascii") == "jpeg\n":
                found.append(int(task.name))
    return found


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true in time. A thread that has ended is seen a little longer."""
    far = time.monotonic() + 30
    while not condition():
        if time.monotonic() > far:
            return False
        time.sleep(0.005)  # what the kernel says has no event to wait for
    return True


def files_of_this_process() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.mark.parametrize("threads", [1, 3])
@in_a_loop
async def test_each_gets_its_own_pixels(threads: int) -> None:
    jobs = [job(seed, 150 + seed, 140) for seed in range(AHEAD * threads * 2 + 5)]
    pool = DecodingThreads(threads)
    try:
        for _ in range(3):
            found = await asyncio.gather(*(pool.run(wanted) for wanted in jobs))
            for wanted, pixels in zip(jobs, found, strict=True):
                expected = jpeg.resized(wanted)
                assert expected is not None
                assert pixels is not None
                assert np.array_equal(pixels, expected)
    finally:
        pool.close()


@in_a_loop
async def test_what_is_declined_is_none_and_its_neighbours_are_not() -> None:
    pool = DecodingThreads(1)
    whole = job(0)
    found = await asyncio.gather(*(pool.run(wanted) for wanted in (whole, cut_off(whole), whole)))
    pool.close()
    assert [pixels is None for pixels in found] == [False, True, False]


@in_a_loop
async def test_one_that_left_before_its_turn_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[jpeg.Job] = []
    room = jpeg.Job.room

    def counted(wanted: jpeg.Job) -> NDArray[np.uint8]:
        asked.append(wanted)
        return room(wanted)

    monkeypatch.setattr(jpeg.Job, "room", counted)
    pool = DecodingThreads(1)
    jobs = [job(seed) for seed in range(AHEAD * 2 + 1)]
    futures = [pool.run(wanted) for wanted in jobs]
    assert asked == jobs[:AHEAD]  # the others wait in Python
    for future in futures[AHEAD:-1]:
        future.cancel()
    futures[0].cancel()  # a thread may be at it already: it is decoded for nobody
    assert await futures[-1] is not None
    assert asked == [*jobs[:AHEAD], jobs[-1]]
    pool.close()


@in_a_loop
async def test_where_the_loop_is_pressed_fewer_are_given_ahead() -> None:
    pressed = True
    pool = DecodingThreads(2, pressed=lambda: pressed)
    futures = [pool.run(job(0)) for _ in range(AHEAD * 3)]
    assert len(pool._given) == AHEAD_PRESSED * 2
    pressed = False
    futures.append(pool.run(job(0)))
    assert len(pool._given) == AHEAD * 2
    assert all(pixels is not None for pixels in await asyncio.gather(*futures))
    pool.close()


def test_another_event_loop_may_go_on() -> None:
    pool = DecodingThreads(1)
    for seed in range(3):
        assert asyncio.run(_of(pool, job(seed))) is not None
    pool.close()


async def _of(pool: DecodingThreads, wanted: jpeg.Job) -> NDArray[np.uint8] | None:
    return await pool.run(wanted)


@in_a_loop
async def test_closing_ends_the_threads_and_tells_who_waits() -> None:
    assert soon(lambda: not threads_here())
    files = files_of_this_process()
    pool = DecodingThreads(2)
    assert soon(lambda: len(threads_here()) == 2)  # each names itself
    futures = [pool.run(job(seed)) for seed in range(AHEAD * 4)]
    pool.close()
    pool.close()
    assert soon(lambda: not threads_here())
    assert files_of_this_process() == files
    assert {type(error) for error in await asyncio.gather(*futures, return_exceptions=True)} == {ShuttingDown}
    with pytest.raises(ShuttingDown):
        pool.run(job(0))


def test_one_that_is_forgotten_ends_too() -> None:
    files = files_of_this_process()
    pool = DecodingThreads(2)
    del pool
    assert soon(lambda: not threads_here())
    assert files_of_this_process() == files


@in_a_loop
async def test_the_event_loop_is_not_wanted_for_the_next_picture() -> None:
    """While the event loop is busy, pictures that were given ahead are decoded."""
    assert soon(lambda: not threads_here())
    pool = DecodingThreads(1)
    futures = [pool.run(job(seed)) for seed in range(AHEAD)]
    assert soon(lambda: len(threads_here()) == 1)
    stat = Path(f"/proc/self/task/{threads_here()[0]}/stat")

    def waits_with_something_done() -> bool:
        return bool(select.select([pool._event], [], [], 0)[0]) and stat.read_text(encoding="ascii").split()[2] == "S"

    assert soon(lambda: all(waits_with_something_done() for _ in range(20)))
    assert not any(future.done() for future in futures)
    pool._look()
    assert all(future.done() for future in futures)
    pool.close()


@in_a_loop
async def test_what_fails_fails_for_its_own_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = job(0)
    nonsense = replace(whole, within=(5, 6, 7000, 50))
    nothing_left = replace(whole, resampling=BILINEAR)
    room = jpeg.Job.room

    def without_memory(wanted: jpeg.Job) -> NDArray[np.uint8]:
        if wanted is nothing_left:
            raise MemoryError("none")
        return room(wanted)

    monkeypatch.setattr(jpeg.Job, "room", without_memory)
    pool = DecodingThreads(1)
    futures = [pool.run(wanted) for wanted in (nothing_left, whole, nonsense, whole)]
    found = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(one) for one in found] == [MemoryError, np.ndarray, ValueError, np.ndarray]
    pool.close()


@pytest.mark.parametrize("end", ["pass", "pool.close(); await asyncio.gather(*futures, return_exceptions=True)", "raise SystemExit"])
def test_a_process_may_end_in_the_middle(end: str) -> None:
    code = f"""
import asyncio
from tests.unit.test_decoding import job
from ortserve.decoding import DecodingThreads
pool = DecodingThreads(3)
async def main():
    futures = [pool.run(job(seed, 900, 700)) for seed in range(30)]
    {end}
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_child_of_a_fork_has_none_of_them_and_ends() -> None:
    code = """
import os
from ortserve.decoding import DecodingThreads
pool = DecodingThreads(2)
child = os.fork()
if child:
    print(os.waitpid(child, 0)[1])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "0\n"


def test_no_room_for_threads_is_said_and_nothing_is_left() -> None:
    code = """
import resource
from pathlib import Path
from ortserve.decoding import DecodingThreads
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 400_000_000,) * 2)  # a thread's stack takes 8 MB of addresses
def held():
    return len([*Path("/proc/self/fd").iterdir()])
before = held()
try:
    DecodingThreads(1000)
except OSError as error:
    print(error, held() == before)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "the system has no room for 1000 more threads: allow this process more True\n"


def test_where_no_event_loop_can_be_woken_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DecodingThreads.possible()
    monkeypatch.delattr("os.eventfd")
    assert not DecodingThreads.possible()
