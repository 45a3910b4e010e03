"""Lanes on the CPU: the same buffers, bindings and threads as on a GPU, and for graphs a session that replays as ONNX Runtime's does."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from ortserve.bound import Lanes, Thread
from ortserve.errors import GraphRefused
from ortserve.manifest import TensorSpec
from tests.unit.test_session import pixels, write_model

OUTPUTS = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 2, 2)) for name in ("doubled", "plus_one"))


class GraphSession:
    """A CPU session that keeps the rules of CUDA graphs: an id belongs to one thread and one binding, and no two runs overlap.

    `run_with_iobinding` has ONNX Runtime's own signature; `broken` is the id whose capture fails, `stale` that
    of the graph whose replays compute nothing. `pause_s` makes a run take time.
    """

    def __init__(self, path: Path, *, broken: int | None = None, stale: int | None = None, pause_s: float = 0.0) -> None:
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._broken = broken
        self._stale = stale
        self._pause_s = pause_s
        self._running = 0
        self._lock = threading.Lock()
        self.most_at_once = 0
        self.captured: dict[int, tuple[int, ort.IOBinding]] = {}
        self.replays: list[int] = []
        self.without = 0
        self.without_after_capture = 0
        self.threads: set[str] = set()

    def io_binding(self) -> ort.IOBinding:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            self.threads.add(threading.current_thread().name)
        try:
            self._note(binding, options)
            time.sleep(self._pause_s)
            if self._stale is None or self._stale not in self.replays[-1:]:
                self._session.run_with_iobinding(binding, options)
        finally:
            with self._lock:
                self._running -= 1

    def _note(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        try:
            graph = int(options.get_run_config_entry("gpu_graph_id"))
        except RuntimeError:
            return
        if graph == self._broken:
            raise RuntimeError("operation not permitted\n when stream is capturing")
        if graph == -1:
            self.without += 1
            self.without_after_capture += bool(self.captured)
        elif graph in self.captured:
            assert self.captured[graph] == (threading.get_ident(), binding), "replayed by another thread, or from other addresses"
            self.replays.append(graph)
        else:
            self.captured[graph] = (threading.get_ident(), binding)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.onnx")


def lanes(session: Any, *, count: int = 2, graphs: bool = True, outputs: Any = OUTPUTS, batch: str = "batch") -> Lanes:
    return Lanes(session, outputs, batch=batch, count=count, device_type="cpu", device_id=0, pin_memory=False, graphs=graphs)


def expected(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"doubled": rows.astype(np.float32) * 2, "plus_one": rows.astype(np.float32) + 1}


def check(made: Lanes, rows: NDArray[Any]) -> None:
    answer = made.run({"pixels": rows})
    for name, tensor in expected(rows).items():
        np.testing.assert_array_equal(answer[name], tensor)


@pytest.mark.parametrize(("graphs", "unknown"), [(True, False), (False, False), (False, True)])
def test_lanes_answer_as_run_does(model: Path, graphs: bool, unknown: bool) -> None:
    made = lanes(GraphSession(model), graphs=graphs, batch="another" if unknown else "batch")
    for rows, first in ((3, 0), (1, 7), (3, 50), (2, 9), (3, 0)):  # shapes come back: their buffers are used again
        check(made, pixels(rows, first))


@pytest.mark.parametrize("graphs", [True, False])
def test_answers_do_not_change_under_the_next_run(model: Path, graphs: bool) -> None:
    made = lanes(GraphSession(model), count=1, graphs=graphs)
    made.warm_up([{"pixels": pixels(2)}])
    first = made.run({"pixels": pixels(2, first=10)})["doubled"]
    kept = first.copy()
    made.run({"pixels": pixels(2, first=90)})
    np.testing.assert_array_equal(first, kept)


def test_each_bucket_has_a_graph_in_each_lane_captured_while_warming_up(model: Path) -> None:
    session = GraphSession(model)
    made = lanes(session)
    made.warm_up([{"pixels": pixels(rows)} for rows in (1, 2, 4)])
    assert sorted(session.captured) == [1, 2, 3, 4, 5, 6]
    assert made.captured == 6
    assert len({binding for _, binding in session.captured.values()}) == 6
    for rows in (4, 1, 2, 2):
        check(made, pixels(rows, first=20))
    assert len(session.replays) == 6 + 4  # each was checked once
    assert session.without == 6  # before the first capture: memory grows, answers to compare with
    assert session.without_after_capture == 0


def test_a_size_that_was_not_warmed_runs_without_a_graph(model: Path) -> None:
    session = GraphSession(model)
    made = lanes(session)
    made.warm_up([{"pixels": pixels(2)}])
    check(made, pixels(3))
    check(made, pixels(3))
    assert (session.without_after_capture, session.replays, made.captured) == (2, [1, 2], 2)


def test_graphs_are_captured_and_replayed_by_one_thread_and_never_overlap(model: Path) -> None:
    session = GraphSession(model, pause_s=0.001)
    made = lanes(session)
    made.warm_up([{"pixels": pixels(rows)} for rows in (1, 2, 4)])
    with ThreadPoolExecutor(4) as callers:  # more than lanes: the others wait
        list(callers.map(lambda number: check(made, pixels((1, 2, 4)[number % 3], first=number % 200)), range(200)))
    assert session.most_at_once == 1
    assert session.threads == {"gpu"}
    assert len(session.replays) == 6 + 200


def test_without_graphs_lanes_run_at_once_each_in_its_own_thread(model: Path) -> None:
    session = GraphSession(model, pause_s=0.01)
    made = lanes(session, graphs=False)
    made.warm_up([{"pixels": pixels(1)}])
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda number: check(made, pixels(1 + number % 3, first=number % 200)), range(60)))
    assert session.most_at_once == 2
    assert session.threads == {"gpu-0", "gpu-1"}
    assert session.captured == {}


def test_an_output_of_no_fixed_shape_is_refused_for_graphs(model: Path) -> None:
    free = TensorSpec(name="doubled", dtype="float32", shape=("found", 2, 2))
    with pytest.raises(GraphRefused, match=r"output 'doubled' differs from run to run: set cuda_graphs: off"):
        lanes(GraphSession(model), outputs=(free,))


def test_a_capture_that_fails_names_the_batch_and_the_remedy(model: Path) -> None:
    made = lanes(GraphSession(model, broken=3))
    made.warm_up([{"pixels": pixels(1)}])
    with pytest.raises(GraphRefused, match=r"batch of 2 cannot be captured \(operation not permitted when .*graphs: off") as caught:
        made.warm_up([{"pixels": pixels(2)}])
    assert "\n" not in str(caught.value)


def test_a_graph_that_answers_otherwise_than_a_run_without_is_refused(model: Path) -> None:
    made = lanes(GraphSession(model, stale=2), count=1)
    with pytest.raises(GraphRefused, match=r"batch of 2 answers 'doubled' otherwise than a run without: set cuda_graphs: off"):
        made.warm_up([{"pixels": pixels(rows, first=9)} for rows in (1, 2)])


def test_a_failing_run_gives_its_lane_back(model: Path) -> None:
    made = lanes(GraphSession(model), count=1)
    with pytest.raises(Exception, match="wrong"):
        made.run({"wrong": pixels(1)})
    check(made, pixels(1))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "bool", "float16", "float32", "float64"])
def test_every_served_dtype_has_buffers(dtype: str) -> None:
    value = ort.OrtValue.ortvalue_from_shape_and_type((2, 3), np.dtype(dtype), "cpu", 0)
    assert value.numpy().dtype == dtype


def test_a_thread_passes_on_what_is_raised_and_ends_with_its_owner() -> None:
    owner = Thread("mine")
    with pytest.raises(ZeroDivisionError):
        owner.call(lambda: 1 / 0)
    worker = next(thread for thread in threading.enumerate() if thread.name == "mine")
    assert owner.call(threading.get_ident) == worker.ident
    del owner
    gc.collect()
    worker.join(10)
    assert not worker.is_alive()
