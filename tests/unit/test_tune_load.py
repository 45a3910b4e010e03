"""The load's figures against a server whose answers are known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve.errors import TuneError
from ortserve.tune.counted import answer_rate, percentile
from ortserve.tune.load import Plan, run
from ortserve.tune.traffic import KINDS, kind_of, write_requests
from tests.serving import ROOT

Answer = Callable[[int], Awaitable[int]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[int]:
    """A port that answers each request with the status that `answer` gives for its number."""
    count = 0
    open_writers: set[asyncio.StreamWriter] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        open_writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(
                    next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                )
                count += 1
                status = await answer(count)
                writer.write(b"HTTP/1.1 %d Some\r\nContent-Length: 2\r\n\r\n{}" % status)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            open_writers.discard(writer)

    running = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()
        for writer in list(open_writers):
            writer.close()
        await running.wait_closed()


def load(answer: Answer, folder: Path, **plan: Any) -> dict[str, Any]:
    """The figures of a load of half a second each on such a server."""
    (folder / "request").write_bytes(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
    fields = {"callers": 4, "warm_up_s": 0.0, "closed_s": 0.5, "open_s": 0.5, "rate": None, "share": 0.5, **plan}

    async def both() -> dict[str, Any]:
        async with server(answer) as port:
            return await run(Plan(port=port, requests=(str(folder / "request"),), **fields))

    return asyncio.run(both())


def slow(seconds: float) -> Answer:
    async def answer(_: int) -> int:
        await asyncio.sleep(seconds)
        return 200

    return answer


def test_a_closed_loop_has_no_more_under_way_than_callers(tmp_path: Path) -> None:
    closed = load(slow(0.05), tmp_path)["closed"]
    assert 4 <= closed["requests_per_s"] <= 4 / 0.05
    assert closed["p50_ms"] >= 50
    assert closed["failed"] == 0


def test_an_open_loop_sends_at_its_rate_whatever_the_answers_do(tmp_path: Path) -> None:
    opened = load(slow(0.4), tmp_path, rate=200.0)["open"]
    assert opened["offered_per_s"] == pytest.approx(200, rel=0.4)  # a hundred arrivals by chance
    assert opened["answered"] == sum(opened["statuses"].values())  # none was lost at the end of the window
    assert opened["p50_ms"] >= 400


def test_without_a_rate_the_open_loop_takes_its_share_of_what_was_found(tmp_path: Path) -> None:
    figures = load(slow(0.02), tmp_path, share=0.5)
    assert figures["open"]["offered_per_s"] < figures["closed"]["requests_per_s"]


def test_refusals_are_counted_by_status_and_not_as_answers(tmp_path: Path) -> None:
    async def answer(number: int) -> int:
        return 200 if number % 2 else 429

    opened = load(answer, tmp_path, rate=100.0)["open"]
    assert set(opened["statuses"]) == {"200", "429"}
    assert opened["answered"] == opened["statuses"]["200"]
    assert 0.2 < opened["failed"] < 0.8


def test_a_lost_connection_is_a_failure_and_not_the_end(tmp_path: Path) -> None:
    async def answer(_: int) -> int:
        raise ConnectionError

    figures = load(answer, tmp_path)
    assert figures["open"] is None  # nothing to take a rate from
    assert set(figures["closed"]["statuses"]) == {"none"}
    assert figures["closed"]["failed"] == 1


def test_the_rate_of_a_closed_loop_is_taken_between_batches(tmp_path: Path) -> None:
    async def together(_: int) -> int:
        await asyncio.sleep(0.2 - asyncio.get_running_loop().time() % 0.2)
        return 200

    closed = load(together, tmp_path, callers=8, warm_up_s=0.25)["closed"]
    assert closed["requests_per_s"] == pytest.approx(40, rel=0.1)  # 16 or 24 answers in the half second would be 32 or 48


@given(begin=st.floats(0.6, 2), window=st.floats(2, 5), every=st.floats(0.1, 0.5), apart=st.floats(0, 0.004))
def test_no_part_of_a_batch_falls_in_or_out_wherever_the_window_is(begin: float, window: float, every: float, apart: float) -> None:
    answers = [0.0, *(batch * every + row * apart for batch in range(1, 100) for row in range(8))]
    assert answer_rate(answers, begin, begin + window) == pytest.approx(8 / every, rel=0.01)


def test_the_rate_of_answers_one_by_one_is_no_other_than_their_number() -> None:
    chance, found = random.Random(0), []
    for _ in range(1000):
        answers = [0.0]
        while answers[-1] < 6:
            answers.append(answers[-1] + chance.expovariate(30))
        found.append(answer_rate(answers, 1, 4))
    assert sum(found) / len(found) == pytest.approx(30, rel=0.005)  # one long pause within, one left out


def test_of_a_service_that_fell_silent_or_answered_once_the_window_counts() -> None:
    assert answer_rate([0.0, *(number / 100 for number in range(1, 101))], 0.5, 2.5) == pytest.approx(25)
    assert answer_rate([0.0, *[1.4] * 8], 1, 3) == 4
    assert answer_rate([0.0], 1, 3) == 0


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values[:10], 0.99)) == (50, 99, 10)


def test_what_is_sent_fits_the_task(tmp_path: Path) -> None:
    pictures = write_requests(kind_of("image-classification"), tmp_path / "pictures", ROOT / "examples" / "digits", None)
    assert len(pictures) == 30
    head, _, body = pictures[0].read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"POST /classify HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    (tmp_path / "texts").write_text("one\n\n two \n", encoding="utf-8")
    texts = write_requests(kind_of("feature-extraction"), tmp_path / "json", tmp_path, tmp_path / "texts")
    assert [file.read_bytes().partition(b"\r\n\r\n")[2] for file in texts] == [
        b'{"inputs": "one", "truncate": true}',
        b'{"inputs": "two", "truncate": true}',
    ]


@pytest.mark.parametrize(
    ("task", "said"), [("image-classification", "name a folder with --pictures"), ("text-classification", "name another file with --texts")]
)
def test_nothing_to_send_is_said(task: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(TuneError, match=said):
        write_requests(kind_of(task), tmp_path / "requests", tmp_path, tmp_path / "empty")


def test_an_unknown_task_is_said() -> None:
    with pytest.raises(TuneError, match="'juggling', expected one of image-classification"):
        kind_of("juggling")


def test_embeddings_are_alike_where_they_point_the_same_way() -> None:
    same = KINDS["feature-extraction"].same
    assert same([1.0, 0.0], [2.0, 0.02])
    assert not same([1.0, 0.0], [1.0, 1.0])
    assert not same([1.0], [1.0, 0.0])
