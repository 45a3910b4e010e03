"""The limit: bare `session.run` in a process of its own, on pixels that are ready, at several set-ups; the best one counts.

`python -m benchmarks.bare MODEL.onnx SECONDS` prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from ortserve.cpus import available_cpus
from ortserve.profile import Execution, Session
from ortserve.session import Session as OpenSession


def measure(path: Path, seconds: float) -> list[dict[str, float]]:
    """Rows per second of one session with every CPU at batch 1, 4 and 8, and of one single-threaded session run from as many threads."""
    cpus = available_cpus()
    return [
        _measure(path, seconds, threads=threads, callers=callers, batch=batch)
        for threads, callers, batch in ((cpus, 1, 1), (cpus, 1, 4), (cpus, 1, 8), (1, cpus, 1), (1, cpus, 4))
    ]


def _measure(path: Path, seconds: float, *, threads: int, callers: int, batch: int) -> dict[str, float]:
    execution = Execution(provider="CPUExecutionProvider", session=Session(intra_op_num_threads=threads))
    session = OpenSession.open(path, execution, outputs=["probabilities"])
    spec = session.inputs[0]
    shape = (batch, *(int(size) for size in spec.shape[1:]))
    inputs = {spec.name: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}
    session.warm_up([batch])
    latencies: list[float] = []
    stop_at = time.perf_counter() + seconds

    def call() -> None:
        while (started := time.perf_counter()) < stop_at:
            session.run(inputs)
            latencies.append(time.perf_counter() - started)

    workers = [threading.Thread(target=call) for _ in range(callers)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - started
    return {
        "threads": threads,
        "callers": callers,
        "batch": batch,
        "rows_per_s": len(latencies) * batch / elapsed,
        "p50_ms": float(np.median(latencies)) * 1000,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), float(sys.argv[2]))))
