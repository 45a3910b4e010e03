"""Two batches on one session: alone a run has every thread, beside another it has one, and no answer is lost or mixed up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from ortserve.batching import Batcher
from ortserve.execution import Execution
from ortserve.execution import Session as Options
from ortserve.providers import session_options
from ortserve.session import Session
from ortserve.shared_pool import SharedPool
from tests.held_session import Notes, asking, rows, run, settings, turns, values
from tests.unit.test_session import pixels, write_model

Answer = Callable[[list[Any], None, str], None]


class Opened:
    """What ONNX Runtime's session does with `run` and `run_async`, each until `release`: 10 x, or what `error` says."""

    def __init__(self) -> None:
        self.ways: list[str] = []
        self.error = ""
        self._started = threading.Semaphore(0)
        self._gates = {"wide": threading.Semaphore(0), "beside": threading.Semaphore(0)}

    def run(self, _: list[str], inputs: dict[str, Any]) -> list[Any]:
        self._wait("wide")
        if self.error:
            raise ValueError(self.error)
        return [inputs["x"] * 10]

    def run_async(self, _: list[str], inputs: dict[str, Any], answer: Answer, user_data: None) -> None:
        def work() -> None:
            self._wait("beside")
            answer([] if self.error else [inputs["x"] * 10], user_data, self.error)

        threading.Thread(target=work).start()

    def wait_for_a_start(self) -> None:
        assert self._started.acquire(timeout=30)

    def release(self, way: str) -> None:
        self._gates[way].release()

    def _wait(self, way: str) -> None:
        self.ways.append(way)
        self._started.release()
        assert self._gates[way].acquire(timeout=30)


class Runs:
    """A pool as `Session` uses it, for a batcher."""

    def __init__(self, opened: Opened) -> None:
        self._pool = SharedPool(opened, ["y"])

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": self._pool.run(inputs)[0]}


def test_a_lone_batch_has_every_thread_and_a_second_one_of_them() -> None:
    async def test() -> None:
        opened = Opened()
        notes = Notes()
        batcher = Batcher(Runs(opened), settings(max_in_flight=2), observer=notes)
        [lone] = asking(batcher, rows(1.0))
        await turns()
        opened.wait_for_a_start()
        assert opened.ways == ["wide"]
        [second] = asking(batcher, rows(2.0))
        await turns()
        opened.wait_for_a_start()
        assert opened.ways == ["wide", "beside"]
        opened.release("beside")
        assert await second == [20.0]
        assert not lone.done()
        [third] = asking(batcher, rows(3.0))  # while the first still has its calling thread
        await turns()
        opened.wait_for_a_start()
        opened.release("wide")
        assert await lone == [10.0]
        [fourth] = asking(batcher, rows(4.0))  # and now one is free again
        await turns()
        opened.wait_for_a_start()
        assert opened.ways == ["wide", "beside", "beside", "wide"]
        opened.release("wide")
        opened.release("beside")
        assert (await third, await fourth) == ([30.0], [40.0])
        await batcher.close()
        assert [in_flight for _, in_flight, _ in notes.started] == [1, 2, 2, 2]
        assert notes.finished[-1] == (1, 0)

    run(test)


@pytest.mark.parametrize("way", ["wide", "beside"])
def test_what_failed_is_told_and_frees_its_thread(way: str) -> None:
    opened = Opened()
    pool = SharedPool(opened, ["y"])
    with ThreadPoolExecutor(1) as other:
        if way == "beside":
            first = other.submit(pool.run, rows(1.0))
            opened.wait_for_a_start()
        opened.error = "secret of the library"
        opened.release(way)
        with pytest.raises((ValueError, RuntimeError), match="secret of the library"):
            pool.run(rows(2.0))
        opened.error = ""
        if way == "beside":
            opened.release("wide")
            assert values({"y": first.result()[0]}) == [10.0]
    opened.release("wide")
    assert values({"y": pool.run(rows(3.0))[0]}) == [30.0]
    assert opened.ways[-1] == "wide"


def test_what_onnx_runtime_refuses_on_a_thread_of_the_pool_is_raised(tmp_path: Path) -> None:
    execution = Execution(provider="CPUExecutionProvider", session=Options(intra_op_num_threads=2))
    path = str(write_model(tmp_path / "tiny.onnx"))
    pool = SharedPool(ort.InferenceSession(path, session_options(execution), providers=["CPUExecutionProvider"]), ["doubled"])
    with pytest.raises(Exception, match="Got invalid dimensions"):
        pool._run_beside({"pixels": np.zeros((1, 2, 3), np.uint8)})
    np.testing.assert_array_equal(pool._run_beside({"pixels": pixels(2)})[0], pixels(2) * 2.0)


@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_needs_no_pool(tmp_path: Path, threads: int) -> None:
    execution = Execution(provider="CPUExecutionProvider", session=Options(intra_op_num_threads=threads))
    assert (Session.open(write_model(tmp_path / "tiny.onnx"), execution)._pool is None) == (threads == 1)
