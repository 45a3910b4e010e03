"""One ONNX Runtime session run by several threads at once, on no more CPUs than its pool has threads."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray


class SharedPool:
    """Runs of a session on the CPU whose pool has more than one thread. `run` may be called from several threads at once.

    A run alone is spread over the calling thread and the pool's others: the shortest latency. But its threads wait for one another at every
    operator, and two such runs are one thread more than there are CPUs. So a run that finds another one under way goes to a thread of the
    pool (`run_async`): each computes for itself then, which is the most rows per second, and the one that is left when the other ends has
    the pool's threads back at its next operator. One session does both: a second, single-threaded one would hold the weights twice
    (108 MiB more of all-MiniLM-L6-v2, 133 of resnet50) and measured hardly faster.
    """

    def __init__(self, session: ort.InferenceSession, outputs: list[str]) -> None:
        self._session = session
        self._outputs = outputs
        self._wide = threading.Lock()  # held by the run that has its calling thread

    def run(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in order. Raises whatever ONNX Runtime does, RuntimeError where a thread of the pool met it."""
        if not self._wide.acquire(blocking=False):
            return self._run_beside(inputs)
        try:
            answer: list[NDArray[Any]] = self._session.run(self._outputs, inputs)
            return answer
        finally:
            self._wide.release()

    def _run_beside(self, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        done: SimpleQueue[tuple[list[NDArray[Any]], str]] = SimpleQueue()
        self._session.run_async(self._outputs, inputs, lambda outputs, _, error: done.put((outputs, error)), None)
        outputs, error = done.get()
        if error:
            raise RuntimeError(error)
        return outputs
