"""What a served model lets in while its queue is nearly full, and which of its threads make rows of payloads."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ortserve import arrivals, jpeg, profile_file
from ortserve.errors import InvalidImage, QueueFull, ShuttingDown
from ortserve.model import Answer, ServedModel
from ortserve.refusal_count import MANY
from ortserve.tasks.endpoint import Endpoint
from ortserve.tasks.row import Begun, Row
from tests.held_session import FAR_S, Held, rows, settings, values
from tests.runners import engine_of


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_no_more_are_let_in_at_their_heads_than_there_will_be_places_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "SOON_S", FAR_S)
    refused: list[str] = []
    observer: Any = SimpleNamespace(refused=lambda reason, _: refused.append(reason))
    package: dict[str, Any] = {"manifest": SimpleNamespace(name="x"), "version": "1", "task": None, "profile": profile_file.load("default")}

    async def test() -> None:
        async with engine_of(kind, tmp_path, Held(held=False), settings(max_queue_size=4)) as (engine, _):
            served = ServedModel(engine=engine, observer=observer, **package)
            for _ in range(4):
                served.let_in()
            with pytest.raises(QueueFull, match="4 wait"):
                served.let_in()
            assert refused == ["queue_full"]
            served.expect_room()  # for one whose body is here: nobody has taken a place yet
            served.came()
            (place,) = engine.admit(1, deadline=time.monotonic() + FAR_S)
            with place, pytest.raises(QueueFull):
                served.let_in()  # the place of the one that came, and those of three on their way
            served.came()
            served.let_in()
            await asyncio.to_thread(served._decoders.close)

    asyncio.run(asyncio.wait_for(test(), 30))


def test_the_observer_hears_of_an_answer_once_its_caller_has_it(tmp_path: Path) -> None:
    class Values(Payloads):
        def preprocess(self, payload: Any, parameters: Any) -> Row:
            return Row(rows(payload), parameters)

        def postprocess(self, outputs: Any, row: Row, parameters: Any) -> Any:  # noqa: ARG002
            return values(outputs)

    heard: list[str] = []
    observer: Any = SimpleNamespace(decoded=lambda _: heard.append("decoded"), answered=lambda _: heard.append("answered"))
    package: dict[str, Any] = {
        "manifest": SimpleNamespace(name="x"),
        "version": "1",
        "task": Values(),
        "profile": profile_file.load("default"),
    }

    async def test() -> None:
        async with engine_of("local", tmp_path, Held(held=False), settings()) as (engine, _):
            served = ServedModel(engine=engine, observer=observer, **package)
            (answer,) = await served.predict([2], None)
            assert isinstance(answer, Answer)
            assert (answer.value, heard) == ([20], [])
            await asyncio.sleep(0)
            assert heard == ["decoded", "answered"]
            await asyncio.to_thread(served._decoders.close)

    asyncio.run(asyncio.wait_for(test(), 30))


# --- rows -------------------------------------------------------------------------------------------------------------


class Payloads:
    """A task that makes every row in Python's threads."""

    endpoints: tuple[Endpoint, ...] = ()
    outputs: tuple[str, ...] = ()
    payloads_per_job = 1

    def preprocess(self, payload: Any, parameters: Any) -> Row:
        assert threading.current_thread() is not threading.main_thread()
        return Row({"pixels": np.zeros(0)}, (payload, parameters))

    def postprocess(self, outputs: Any, row: Row, parameters: Any) -> Any:  # noqa: ARG002
        raise AssertionError("nothing is answered here")


class Pictures(Payloads):
    """A task that begins the pictures it is given as jobs, and makes the rows of tiny ones where it is asked."""

    def preprocess(self, payload: Any, parameters: Any) -> Row:
        if threading.current_thread() is not threading.main_thread():
            return super().preprocess(payload, parameters)
        if payload == b"tiny rubbish":
            raise InvalidImage("no picture")
        return Row({"pixels": np.ones(0)}, (payload, parameters, "at once"))

    def soon(self, payload: Any) -> bool:
        assert threading.current_thread() is threading.main_thread()
        return isinstance(payload, bytes) and payload.startswith(b"tiny")

    def begin(self, payload: Any, parameters: Any) -> Begun | None:
        assert threading.current_thread() is threading.main_thread()
        if payload == b"refused":
            raise InvalidImage("no picture")
        return Begun(payload, lambda pixels: Row({"pixels": pixels}, parameters)) if isinstance(payload, jpeg.Job) else None


def picture(*, whole: bool = True) -> jpeg.Job:
    file = io.BytesIO()
    Image.effect_noise((90, 70), 60).convert("RGB").save(file, "JPEG")
    data = file.getvalue() if whole else file.getvalue()[:-200]
    wanted = jpeg.job(data, 1, (90, 70), (40, 30), (0, 0, 40, 30), Image.Resampling.BILINEAR)
    assert wanted is not None
    return wanted


def serving(task: Any) -> ServedModel:
    """A model whose engine is not asked."""

    async def closed() -> None:
        return None

    manifest: Any = SimpleNamespace(name="x")
    engine: Any = SimpleNamespace(close=closed)
    return ServedModel(manifest=manifest, version="1", task=task, engine=engine, profile=profile_file.load("default"))


def test_a_row_comes_by_the_way_that_its_payload_is_for() -> None:
    async def test() -> None:
        served = serving(Pictures())
        whole, cut_off = picture(), picture(whole=False)
        (row,) = await served._prepared([whole], "given", few=True)
        assert isinstance(row, Row)
        expected = jpeg.resized(whole)
        assert expected is not None
        assert np.array_equal(row.tensors["pixels"], expected)
        assert row.context == "given"
        for other in (b"another kind", cut_off):  # what was begun and declined ends there too
            (row,) = await served._prepared([other], "given", few=True)
            assert isinstance(row, Row)
            assert row.context == (other, "given")
        for few, way in ((True, ("at once",)), (False, ())):
            (row,) = await served._prepared([b"tiny"], "given", few=few)
            assert isinstance(row, Row)
            assert row.context == (b"tiny", "given", *way)
        (error,) = await served._prepared([b"tiny rubbish"], "given", few=True)
        assert isinstance(error, InvalidImage)
        (error,) = await served._prepared([b"refused"], "given", few=True)
        assert isinstance(error, InvalidImage)
        (same,) = await served._prepared([error], "given", few=True)
        assert same is error
        together = await served._prepared([whole, b"another kind"], "given", few=True)  # share one hop to one thread
        assert [row.context for row in together if isinstance(row, Row)] == [(whole, "given"), (b"another kind", "given")]
        await served.close()

    asyncio.run(asyncio.wait_for(test(), 30))


@pytest.mark.parametrize("task", [Payloads(), Pictures()])
def test_without_such_threads_rows_come_from_pythons(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(task, Pictures):
        monkeypatch.delattr("os.eventfd")

    async def test() -> None:
        served = serving(task)
        assert served._quick is None
        (row,) = await served._prepared([b"another kind"], 1, few=True)
        assert isinstance(row, Row)
        assert row.context == (b"another kind", 1)
        await served.close()

    asyncio.run(asyncio.wait_for(test(), 30))


@pytest.mark.parametrize(("count", "at_once"), [(1, True), (16, True), (17, False)])
def test_a_request_of_many_does_not_hold_up_the_event_loop(count: int, at_once: bool, tmp_path: Path) -> None:
    made: list[bool] = []

    class Values(Pictures):
        def preprocess(self, payload: Any, parameters: Any) -> Row:  # noqa: ARG002
            made.append(threading.current_thread() is threading.main_thread())
            return Row(rows(1), parameters)

        def postprocess(self, outputs: Any, row: Row, parameters: Any) -> Any:  # noqa: ARG002
            return values(outputs)

    async def test() -> None:
        async with engine_of("local", tmp_path, Held(held=False), settings()) as (engine, _):
            manifest: Any = SimpleNamespace(name="x")
            served = ServedModel(manifest=manifest, version="1", task=Values(), engine=engine, profile=profile_file.load("default"))
            answers = await served.predict([b"tiny"] * count, None)
            assert [answer.value for answer in answers if isinstance(answer, Answer)] == [[10]] * count
            await served.close()

    asyncio.run(asyncio.wait_for(test(), 30))
    assert made == [at_once] * count


def test_while_many_are_refused_decoding_is_told_that_the_loop_is_pressed() -> None:
    async def test() -> None:
        served = serving(Pictures())
        assert served._quick is not None
        served.refused("queue_full", MANY)
        assert not served._quick._pressed()
        served.refused("queue_full", 1)
        assert served._quick._pressed()
        await served.close()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_who_waits_for_a_picture_while_the_service_closes_is_told() -> None:
    async def test() -> None:
        served = serving(Pictures())
        waiting = [asyncio.ensure_future(served._prepared([picture()], None, few=True)) for _ in range(40)]
        gone = waiting.pop()
        await asyncio.sleep(0)
        gone.cancel()
        await served.close()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(end) for end in ends} <= {ShuttingDown, list}
        assert type(ends[-1]) is ShuttingDown
        with pytest.raises(asyncio.CancelledError):
            await gone

    asyncio.run(asyncio.wait_for(test(), 30))
