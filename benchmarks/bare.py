"""The limit: bare `session.run` in a process of its own, on pixels that are ready, at several set-ups; the best one counts.

`python -m benchmarks.bare MODEL.onnx SECONDS [--grid | --only SETUPS] [--picture FILE]` prints one line of JSON: a list of set-ups. SETUPS
is such a list, of those to measure; one that is `decoding` decodes the picture before each call: which is what a single caller cannot be
answered faster than.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.callers import hammer
from ortserve import images
from ortserve.cpus import available_cpus
from ortserve.execution import Execution, Session
from ortserve.manifest import Manifest, Preprocessing
from ortserve.profile import Limits
from ortserve.session import Session as OpenSession

LIMITS = Limits()


def setups(grid: bool) -> list[dict[str, Any]]:
    """Threads of a session, threads that call it, rows of a batch, spinning: those that win somewhere; with `grid` all."""
    cpus = available_cpus()
    if grid:
        return [
            {"threads": threads, "callers": cpus // threads, "batch": batch, "spinning": spinning}
            for threads in range(1, cpus + 1)
            for batch in (1, 2, 4, 8, 16, 32)
            for spinning in (False, True)
        ]
    every = [(cpus, 1, 1, False), (cpus, 1, 1, True), (cpus, 1, 4, False), (cpus, 1, 4, True), (cpus, 1, 8, False)]
    each = [(1, cpus, 1, False), (1, cpus, 4, False)]
    return [dict(zip(("threads", "callers", "batch", "spinning"), one, strict=True)) for one in (*every, *each)]


def alone() -> list[dict[str, Any]]:
    """One caller, whose picture is decoded too: with every thread, with those spinning, and with one, which costs the least CPU time."""
    ways = dict.fromkeys([(available_cpus(), False), (available_cpus(), True), (1, False)])
    return [{"threads": threads, "callers": 1, "batch": 1, "spinning": spinning, "decoding": True} for threads, spinning in ways]


def opened(path: Path, setup: Mapping[str, Any], *, spin_duration_us: int = 1_000_000) -> OpenSession:
    """A warm session. Where it spins: as long as ONNX Runtime's own default does, which is longer than anything here, or shorter."""
    options = Session(intra_op_num_threads=setup["threads"], allow_spinning=setup["spinning"], spin_duration_us=spin_duration_us)
    session = OpenSession.open(path, Execution(provider="CPUExecutionProvider", session=options), outputs=["probabilities"])
    session.warm_up([setup["batch"]])
    return session


def run_decoded(session: OpenSession, how: Preprocessing, picture: bytes) -> None:
    """Decode a picture as the service does, and run it."""
    session.run({session.inputs[0].name: images.load(picture, how, LIMITS, decoder="exact")[np.newaxis]})


def measure(path: Path, seconds: float, setup: dict[str, Any], picture: bytes | None = None) -> dict[str, Any]:
    """Rows per second and the median time of a call. With `picture`, each call decodes it first."""
    session = opened(path, setup)
    spec = session.inputs[0]
    shape = (setup["batch"], *(int(size) for size in spec.shape[1:]))
    inputs = {spec.name: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)}
    how = Manifest.read(path.parent).preprocessing

    def call() -> None:
        if picture is not None and how is not None:
            run_decoded(session, how, picture)
        else:
            session.run(inputs)

    began, used = time.perf_counter(), time.process_time()
    calls_per_s, median_ms = hammer(call, setup["callers"], seconds)
    calls = calls_per_s * (time.perf_counter() - began)
    return setup | {
        "decoding": picture is not None,
        "rows_per_s": calls_per_s * setup["batch"],
        "p50_ms": median_ms,
        "cpu_s_per_row": (time.process_time() - used) / (calls * setup["batch"]),
    }


def main(
    model: Path,
    seconds: float,
    grid: bool = False,
    only: Annotated[str, typer.Option()] = "",
    picture: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Measure and print."""
    asked = json.loads(only) if only else setups(grid)
    if picture is None and any(setup.get("decoding") for setup in asked):
        raise typer.BadParameter("expected a picture for a set-up that decodes one, got none: give --picture FILE")
    content = b"" if picture is None else picture.read_bytes()
    print(json.dumps([measure(model, seconds, setup, content if setup.get("decoding") else None) for setup in asked]))


if __name__ == "__main__":
    typer.run(main)
