"""Lanes to a GPU: for each batch that may be in flight, page-locked staging, fixed device buffers and, with CUDA graphs, a graph a shape.

How two batches overlap, from ONNX Runtime 1.31's sources. Copies are `cudaMemcpy` on CUDA's default stream, made by the thread that calls
`run`; a session computes on streams of its own that do not wait for that one. So while one lane computes, another copies its batch in.
Without graphs each lane has a thread and therefore a stream and cuBLAS and cuDNN handles of its own, all made while warming up. With
graphs a session has one stream, and a graph belongs to the thread that captured it: every lane computes in one thread, in turns, and
only copies overlap. That is what is gained by a second lane: computing two batches at once on a busy device gains nothing.

A graph reads and writes the addresses it was captured at. Inputs and outputs are therefore allocated here, outside the session's arena,
which the graphs use as scratch: an output that lay there could be overwritten by the next graph before it was copied out.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import LifoQueue, SimpleQueue
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ortserve import cudart
from ortserve.errors import GraphRefused
from ortserve.manifest import TensorSpec

Tensors = dict[str, NDArray[Any]]

_GRAPH_ID = "gpu_graph_id"  # kOrtRunOptionsConfigCudaGraphAnnotation: which of a session's graphs a run captures or replays
_NO_GRAPH = -1
_GROWING = 2  # runs of each shape before the first capture: the second finds what the first one allocated free again
GRAPH_TOLERANCE = 0.01  # of the largest value: the same kernels in the same order, of which some add in any order


class Lanes:
    """`count` lanes of one session; `run` takes a free one. Only what `warm_up` was given has a graph: other shapes run without one.

    `batch` is the first dimension of the inputs, as the model names it. `device_type` "cpu" goes the same way without a GPU. Raises
    GraphRefused where graphs are wanted and an output's shape does not follow from the number of rows.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        outputs: Sequence[TensorSpec],
        *,
        batch: int | str,
        count: int,
        device_type: str,
        device_id: int,
        pin_memory: bool,
        graphs: bool,
    ) -> None:
        known = all(_follows(spec, batch) for spec in outputs)
        if graphs and not known:
            unknown = next(spec.name for spec in outputs if not _follows(spec, batch))
            raise GraphRefused(f"the shape of its output {unknown!r} differs from run to run: set cuda_graphs: off")
        self._graph_ids = itertools.count(1) if graphs else None
        self.captured = 0
        shared = Thread("gpu") if graphs else None
        self._every = [
            Lane(
                session,
                outputs,
                shared or Thread(f"gpu-{index}"),
                device_type=device_type,
                device_id=device_id,
                pin_memory=pin_memory,
                preallocate=known,
                graphs=graphs,
            )
            for index in range(count)
        ]
        self._free: LifoQueue[Lane] = LifoQueue()
        for lane in self._every:
            self._free.put(lane)

    def run(self, inputs: Tensors) -> Tensors:
        """As `Session.run`. Waits for a free lane; the tensors that come back are the caller's."""
        lane = self._free.get()
        try:
            return lane.run(inputs)
        finally:
            self._free.put(lane)

    def warm_up(self, examples: Sequence[Tensors]) -> None:
        """Run these in every lane, and capture a graph for the shape of each in each. Before any `run`. Raises GraphRefused.

        Runs without a graph come first, until the session's memory has grown to what each shape takes: nothing may be allocated during a
        capture. Once all are captured, each graph has to answer as they did: a convolution's plan is rebuilt when its shape changes, and
        a graph that still launched kernels of the plan before would be silently wrong.
        """
        if self._graph_ids is None:
            for lane, inputs in itertools.product(self._every, examples):
                lane.run(inputs)
            return
        for _ in range(_GROWING):
            answers = [self._every[0].run(inputs) for inputs in examples]
        for lane, inputs in itertools.product(self._every, examples):
            zeros = {name: np.zeros_like(tensor) for name, tensor in inputs.items()}  # or one that computes nothing would seem right
            lane.capture(zeros, next(self._graph_ids))
            self.captured += 1
        for lane, (inputs, answer) in itertools.product(self._every, zip(examples, answers, strict=True)):
            _expect_the_same(lane.run(inputs), answer)


class Lane:
    """One batch's way to the device and back. Used by one thread at a time; keeps a set of buffers for each input shape it has seen."""

    def __init__(
        self,
        session: ort.InferenceSession,
        outputs: Sequence[TensorSpec],
        thread: Thread,
        *,
        device_type: str,
        device_id: int,
        pin_memory: bool,
        preallocate: bool,
        graphs: bool,
    ) -> None:
        self._session = session
        self._outputs = list(outputs)
        self._thread = thread
        self._device_type = device_type
        self._device_id = device_id
        self._pin_memory = pin_memory
        self._preallocate = preallocate
        self._graphs = graphs
        self._buffers: dict[frozenset[tuple[str, tuple[int, ...]]], Buffers] = {}

    def run(self, inputs: Tensors) -> Tensors:
        """As `Session.run`."""
        shapes = _shapes(inputs)
        self._use_device()
        buffers = self._buffers.get(shapes)
        if buffers is None:
            buffers = self._buffers[shapes] = self._allocate(inputs, _NO_GRAPH)
        buffers.fill(inputs)
        self._thread.call(lambda: self._session.run_with_iobinding(buffers.binding, buffers.options))
        return dict(zip((spec.name for spec in self._outputs), buffers.binding.copy_outputs_to_cpu(), strict=True))

    def capture(self, inputs: Tensors, graph_id: int) -> None:
        """Run these and keep the graph of it under that id: ONNX Runtime runs as often as it needs to before it captures. GraphRefused."""
        rows = next(iter(inputs.values())).shape[0]
        self._use_device()
        try:
            self._buffers[_shapes(inputs)] = self._allocate(inputs, graph_id)
            self.run(inputs)
        except Exception as error:  # of ONNX Runtime's family, which shares no base
            said = " ".join(str(error).split())
            raise GraphRefused(f"its CUDA graph for a batch of {rows} cannot be captured ({said}): set cuda_graphs: off") from error

    def _use_device(self) -> None:
        if self._device_type == "cuda" and self._device_id:  # a thread begins on the first one
            cudart.use_device(self._device_id)

    def _allocate(self, inputs: Tensors, graph_id: int) -> Buffers:
        binding = self._session.io_binding()
        device = {name: self._on_device(tensor.shape, tensor.dtype) for name, tensor in inputs.items()}
        for name, value in device.items():
            binding.bind_ortvalue_input(name, value)
        rows = next(iter(inputs.values())).shape[0]
        for spec in self._outputs:
            if self._preallocate:
                binding.bind_ortvalue_output(spec.name, self._on_device(_of_rows(spec, rows), np.dtype(spec.dtype)))
            else:
                binding.bind_output(spec.name, self._device_type, self._device_id)
        options = ort.RunOptions()
        if self._graphs:  # without the key a run would capture, or replay, the session's graph 0, whatever its shape
            options.add_run_config_entry(_GRAPH_ID, str(graph_id))
        staging = {name: np.empty_like(tensor, order="C") for name, tensor in inputs.items()}
        if self._pin_memory:
            for buffer in staging.values():
                cudart.pin(buffer)
        return Buffers(staging, device, binding, options)

    def _on_device(self, shape: Sequence[int], dtype: np.dtype[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._device_type, self._device_id)


class Buffers:
    """What one lane has for one shape: the staging on the host, the same on the device, and the binding that runs on them."""

    def __init__(self, staging: Tensors, device: dict[str, ort.OrtValue], binding: ort.IOBinding, options: ort.RunOptions) -> None:
        self._staging = staging
        self._device = device
        self.binding = binding
        self.options = options

    def fill(self, inputs: Tensors) -> None:
        """Bring these to the device; there once this comes back."""
        for name, tensor in inputs.items():
            np.copyto(self._staging[name], tensor)
            self._device[name].update_inplace(self._staging[name])


class Thread:
    """A thread that makes the calls it is given, one after another. It ends with this object; nothing joins it, as with `Slots`."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._calls,), name=name, daemon=True).start()
        weakref.finalize(self, self._calls.put, None)

    def call(self, function: Callable[[], Any]) -> Any:
        """What `function` returns, or raises, there."""
        future: Future[Any] = Future()
        self._calls.put((function, future))
        return future.result()


def _work(calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    while (call := calls.get()) is not None:
        function, future = call
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
        del call, function, future  # they would keep a lane's buffers until the next one comes


def _expect_the_same(replayed: Tensors, answer: Tensors) -> None:
    """GraphRefused where a graph's floating outputs differ from those without it by more than half precision may."""
    for name, wanted in answer.items():
        if wanted.dtype.kind != "f" or not wanted.size:
            continue
        allowed = GRAPH_TOLERANCE * max(1e-3, float(np.nanmax(np.abs(wanted))))
        if not np.allclose(replayed[name], wanted, rtol=GRAPH_TOLERANCE, atol=allowed, equal_nan=True):
            raise GraphRefused(
                f"its CUDA graph for a batch of {len(wanted)} answers {name!r} otherwise than a run without: set cuda_graphs: off"
            )


def _shapes(inputs: Tensors) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((name, tensor.shape) for name, tensor in inputs.items())


def _follows(spec: TensorSpec, batch: int | str) -> bool:
    """Whether an output's shape is known from the number of rows: everything else in it fixed."""
    return spec.shape[:1] == (batch,) and all(isinstance(dim, int) for dim in spec.shape[1:])


def _of_rows(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    return (rows if isinstance(spec.shape[0], str) else spec.shape[0], *(int(dim) for dim in spec.shape[1:]))
