"""What only can happen to an engine in another process: its runner is lost, late, silent, another one, or goes."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from ortserve import frames, remote_engine, runner_link, runner_stream
from ortserve.errors import (
    DeadlineExceeded,
    ProfileError,
    QueueFull,
    RunnerUnavailable,
)
from ortserve.remote_engine import RemoteEngine
from ortserve.runner_stream import Address
from tests.held_session import FAR_S, Held, rows, settings, values
from tests.runners import IDENTITY, ask, asking, engine_of, remote, run, runner_at, until


def test_a_lost_runner_fails_what_it_had_and_the_next_one_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        session = Held()
        async with runner_at(tmp_path / "s", session, settings()) as runner:
            engine = remote(tmp_path / "s")
            await engine.start()
            asked = asking(engine, 1, 2)
            (undecoded,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            await until(lambda: len(session.batches) == 1)
            runner.break_off()
            for lost in asked:
                with pytest.raises(RunnerUnavailable, match="send the request again") as error:
                    await lost
                assert error.value.retry_after_s > 0
            with undecoded, pytest.raises(RunnerUnavailable):
                await undecoded.infer(rows(3))
            assert not engine.available
            with pytest.raises(RunnerUnavailable):
                engine.admit(1, deadline=time.monotonic() + FAR_S)
            session.release(2)
            await until(lambda: engine.available)
            assert await ask(engine, 4) == 40
            assert runner.engine.rows_waiting == 0  # nothing of what was lost
            await engine.close()

    with caplog.at_level(logging.ERROR):
        run(test)
    assert "the runner was lost, with 3 rows" in caplog.text


def test_a_runner_that_comes_late_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        engine = remote(tmp_path / "s")
        await engine.start()
        assert not engine.available
        async with runner_at(tmp_path / "s", Held(held=False), settings()):
            await until(lambda: engine.available)
            assert await ask(engine, 1) == 10
            await engine.close()

    run(test)
    assert caplog.text.count("no runner at file://") == 1  # however often it was looked for


def test_a_start_waits_for_its_runner_and_knows_its_facts(tmp_path: Path) -> None:
    async def test() -> None:
        engine = remote(tmp_path / "s")
        waiting = asyncio.ensure_future(engine.wait_for_runner())
        await asyncio.sleep(0.02)
        assert not waiting.done()
        async with runner_at(tmp_path / "s", Held(held=False), settings(max_queue_size=17)):
            assert await waiting
            assert engine.batching.max_queue_size == 17
            assert engine.facts()["batching"]["max_queue_size"] == 17

    run(test)


def test_a_start_that_nobody_wants_any_more_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        tries = iter([False, False, True])
        assert not await remote(tmp_path / "s").wait_for_runner(lambda: next(tries))

    run(test)


@pytest.mark.parametrize("wrong", [{"version": "2"}, {"protocol": 99}, {"sha256": {"fp32": "11"}}])
def test_a_runner_of_another_model_is_none(wrong: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with runner_at(tmp_path / "s", Held(held=False), settings(), {**IDENTITY, **wrong}):
            engine = remote(tmp_path / "s")
            await engine.start()
            assert not engine.available
            await engine.close()

    run(test)
    assert f"expected a runner of {next(iter(wrong))}" in caplog.text


def test_something_else_at_the_address_is_no_runner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(answer, tmp_path / "s"):
            engine = remote(tmp_path / "s")
            await engine.start()
            assert not engine.available
            await engine.close()

    run(test)
    assert "status 404: expected a model_runner there" in caplog.text


def test_a_runner_that_goes_answers_what_it_has_while_the_next_one_takes_over(tmp_path: Path) -> None:
    async def test() -> None:
        old, new = Held(), Held(held=False)
        async with runner_at(tmp_path / "s", old, settings()) as going:
            engine = remote(tmp_path / "s")
            await engine.start()
            asked = asking(engine, 1)
            (undecoded,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            await until(lambda: old.batches == [[1]])
            (tmp_path / "s").unlink()
            async with runner_at(tmp_path / "s", new, settings()):
                going.streams.leave()
                await until(lambda: len(engine._links) == 2)
                assert await ask(engine, 2) == 20
                assert new.batches == [[2]]
                old.release(2)
                with undecoded:
                    assert values(await undecoded.infer(rows(3))) == [30]
                assert await asyncio.gather(*asked) == [10]
                await until(lambda: len(engine._links) == 1)
                await until(lambda: not going.server.server_state.connections)  # its stream is closed: it can end
                await engine.close()

    run(test)


def test_a_runner_that_goes_with_no_other_there_is_let_go_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "GOING_S", 0.1)

    async def test() -> None:
        session = Held()
        async with runner_at(tmp_path / "s", session, settings()) as runner:
            engine = remote(tmp_path / "s")
            await engine.start()
            runner.streams.leave()
            assert engine._link is not None
            await engine._link.over.wait()
            assert engine.available  # for the while
            asked = asking(engine, 1)
            await until(lambda: not engine.available)
            with pytest.raises(RunnerUnavailable):
                engine.admit(1, deadline=time.monotonic() + FAR_S)
            assert runner.server.server_state.connections  # its row is still there
            session.release()
            assert await asyncio.gather(*asked) == [10]
            await until(lambda: not engine._links)  # it can end
            await engine.close()

    run(test)


def test_a_runner_that_goes_with_its_api_worker_answers_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_engine, "GOING_S", 0.01)

    async def test() -> None:
        async with runner_at(tmp_path / "s", Held(held=False), settings()) as runner:
            engine = remote(tmp_path / "s")
            await engine.start()
            engine.stay()
            runner.streams.leave()
            await asyncio.sleep(0.05)
            assert engine.available
            assert await ask(engine, 1) == 10
            await engine.close()

    run(test)


def test_a_deadline_is_kept_by_the_api_workers_own_clock(tmp_path: Path) -> None:
    async def test() -> None:
        async def greet_and_hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            hello = frames.joined([frames.Hello({**IDENTITY, "engine": {"batching": {}}})])
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(hello), hello))
            await reader.read()
            writer.close()

        async with await asyncio.start_unix_server(greet_and_hang, tmp_path / "s"):
            engine = remote(tmp_path / "s")
            await engine.start()
            with pytest.raises(DeadlineExceeded):
                await ask(engine, 1, within_s=0.02)
            await engine.close()

    run(test)


def test_a_silent_runner_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_stream, "SILENCE_S", 0.05)  # twenty times sooner than it says anything by itself

    async def test() -> None:
        session = Held()
        async with runner_at(tmp_path / "s", session, settings()):
            engine = remote(tmp_path / "s")
            await engine.start()
            with pytest.raises(RunnerUnavailable):
                await ask(engine, 1)
            session.release()
            await engine.close()

    run(test)


def test_two_api_workers_share_one_queue_and_the_second_asks_nobody_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_link, "FRESH_S", FAR_S)

    async def test() -> None:
        session = Held()
        async with runner_at(tmp_path / "s", session, settings(max_batch_size=1, max_queue_size=2)) as runner:
            one, other = remote(tmp_path / "s"), remote(tmp_path / "s")
            await one.start()
            await other.start()
            asked = asking(one, 1)
            await until(lambda: session.batches == [[1]])
            await until(lambda: one._link is not None and one._link.waiting() == 0)  # the runner has said that the row has started
            places = one.admit(2, deadline=time.monotonic() + FAR_S)
            await until(lambda: runner.engine.rows_waiting == 2)
            assert other._link is not None
            other._link._told_at = -FAR_S  # it has heard nothing yet
            with pytest.raises(QueueFull, match="room for 1 of 2 rows, 2 wait already"):  # says the runner
                await ask(other, 9)
            await until(lambda: other._link is not None and other._link.waiting() == 2)
            with pytest.raises(QueueFull, match="room for 1 of 2 rows, 2 wait already"):  # says the API worker
                other.admit(1, deadline=time.monotonic() + FAR_S)
            for place in places:
                with place:
                    pass
            await until(lambda: runner.engine.rows_waiting == 0)
            session.release(2)
            assert await asyncio.gather(*asked) == [10]
            await until(lambda: other._link is not None and other._link.waiting() == 0)
            assert await ask(other, 4) == 40
            await one.close()
            await other.close()

    run(test)


def test_an_api_worker_that_vanishes_gives_its_places_back(tmp_path: Path) -> None:
    async def test() -> None:
        session = Held()
        async with runner_at(tmp_path / "s", session, settings(max_batch_size=1)) as runner:
            engine = remote(tmp_path / "s")
            await engine.start()
            asked = asking(engine, 1, 2)
            engine.admit(3, deadline=time.monotonic() + FAR_S)
            await until(lambda: session.batches == [[1]] and runner.engine.rows_waiting == 4)
            assert engine._link is not None
            assert engine._link._stream is not None
            engine._link._stream._fail("a test wants it")
            await until(lambda: runner.engine.rows_waiting == 0)
            await asyncio.wait(asked)
            session.release(2)
            await until(lambda: engine.available)
            assert await ask(engine, 5) == 50
            await engine.close()
        assert session.batches == [[1], [5]]

    run(test)


@pytest.mark.parametrize(
    "sent",
    [
        b"5\r\n\xff\xff\xff\xff\x00\r\n",  # a frame of four gigabytes
        b"zz\r\n",  # no chunk
        *(b"%x\r\n%b\r\n" % (len(data), data) for data in (
            frames.joined([frames.State(1, 1.0)]),  # a runner's frame
            frames.joined([frames.Reserve(1, 1, 9.0), frames.Reserve(1, 1, 9.0)]),  # the same number twice
        )),
    ],
    ids=["size", "chunk", "kind", "number"],
)  # fmt: skip
def test_what_may_not_be_sent_ends_that_stream_only(sent: bytes, tmp_path: Path) -> None:
    async def test() -> None:
        async with runner_at(tmp_path / "s", Held(held=False), settings()) as runner:
            engine = remote(tmp_path / "s")
            await engine.start()
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b"POST /v1/rows HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + sent)
            writer.write_eof()
            await reader.read()  # until it ends
            writer.close()
            await until(lambda: runner.engine.rows_waiting == 0)
            assert await ask(engine, 1) == 10
            assert engine.available
            await engine.close()

    run(test)


def test_a_row_that_nobody_reserved_is_not_computed(tmp_path: Path) -> None:
    async def test() -> None:
        session = Held(held=False)
        async with runner_at(tmp_path / "s", session, settings()):
            engine = remote(tmp_path / "s")
            await engine.start()
            assert engine._link is not None
            engine._link.send(frames.Row(10**9, rows(7)))
            engine._link.send(frames.Leave(10**9))
            assert await ask(engine, 1) == 10
            await engine.close()
        assert session.batches == [[1]]

    run(test)


def test_places_that_nobody_uses_are_free_again_at_their_deadline(tmp_path: Path) -> None:
    async def test() -> None:
        async with runner_at(tmp_path / "s", Held(held=False), settings()) as runner:
            engine = remote(tmp_path / "s")
            await engine.start()
            (place,) = engine.admit(1, deadline=time.monotonic() + 0.01)
            await until(lambda: runner.engine.rows_waiting == 1)
            await until(lambda: runner.engine.rows_waiting == 0)
            with place, pytest.raises(DeadlineExceeded):
                await place.infer(rows(1))
            await engine.close()

    run(test)


def test_a_large_row_and_a_small_one_cross_over_each_other(tmp_path: Path) -> None:
    class Sums:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
            return {"y": inputs["x"].astype(np.float64).sum(axis=(1, 2), keepdims=True)}

    async def test() -> None:
        async with engine_of("remote", tmp_path, Sums(), settings()) as (engine, _):

            async def one(side: int) -> float:
                (place,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
                with place:
                    outputs = await place.infer({"x": np.ones((1, side, side), np.uint8)})
                return float(outputs["y"][0, 0, 0])

            sides = [1, 3000, 2, 1000, 3]
            assert await asyncio.gather(*map(one, sides)) == [float(side * side) for side in sides]

    run(test)


# --- addresses -------------------------------------------------------------------------------------------------------


def test_addresses_of_a_runner_map() -> None:
    assert Address.parse("file:///tmp/a%20b/1.sock", "x").path == "/tmp/a b/1.sock"
    assert (Address.parse("tcp://127.0.0.1:3001", "x").host, Address.parse("tcp://127.0.0.1:3001", "x").port) == ("127.0.0.1", 3001)
    assert (Address.parse("http://runner", "x").host, Address.parse("http://runner", "x").port) == ("runner", 80)


@pytest.mark.parametrize("text", ["", "runner:3000", "https://runner:3000", "http://:3000", "http://runner:port", "file:"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ProfileError, match="expected http://HOST:PORT"):
        RemoteEngine(Address.parse(text, "x"), IDENTITY)
