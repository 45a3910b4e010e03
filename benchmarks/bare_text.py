"""The limit of texts: bare `session.run` on tokens that are ready, in a process of its own; the better of two set-ups counts.

`python -m benchmarks.bare_text PACKAGE SECONDS FILE...` prints one line of JSON: texts per second of the texts in these request bodies.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ortserve.cpus import available_cpus
from ortserve.execution import Execution, Session
from ortserve.session import Session as OpenSession
from ortserve.session import Tensors

TOKENS = 512  # in a batch, padding included: as max_batch_tokens of the default profile


def measure(package: Path, seconds: float, files: Sequence[Path]) -> dict[str, float]:
    """Texts per second of one session with every CPU, one batch at a time (wide), and of one thread for each of as many (narrow)."""
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    tokenizer.no_padding()
    texts = [text for file in files for text in json.loads(file.read_bytes())["inputs"]]
    rows = sorted((tokenizer.encode(text).ids for text in texts), key=len)
    cpus = available_cpus()
    return {
        "wide_sentences_per_s": _measure(package / "fp32.onnx", seconds / 2, rows, threads=cpus, callers=1),
        "narrow_sentences_per_s": _measure(package / "fp32.onnx", seconds / 2, rows, threads=1, callers=cpus),
    }


def _measure(path: Path, seconds: float, rows: Sequence[Sequence[int]], *, threads: int, callers: int) -> float:
    execution = Execution(
        provider="CPUExecutionProvider", session=Session(intra_op_num_threads=threads, enable_mem_pattern=False)
    )  # as a service runs rows of any length
    session = OpenSession.open(path, execution, outputs=["embedding"])
    batches = list(_batches(rows, [spec.name for spec in session.inputs]))
    session.run(batches[-1])
    done = [0] * callers
    stop_at = time.perf_counter() + seconds

    def call(number: int) -> None:
        for inputs in cycle(batches[number::callers] or batches):
            if time.perf_counter() >= stop_at:
                return
            session.run(inputs)
            done[number] += len(inputs["input_ids"])

    workers = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - started)


def _batches(rows: Sequence[Sequence[int]], names: Sequence[str]) -> Iterator[Tensors]:
    """The rows, shortest first, as many together as `TOKENS` holds, each batch padded to its longest; in an order of chance."""
    groups: list[list[Sequence[int]]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * len(row) > TOKENS:
            groups.append([])
        groups[-1].append(row)
    for index in np.random.default_rng(0).permutation(len(groups)):  # or a window would see the short ones only
        group = groups[index]
        ids = np.zeros((len(group), len(group[-1])), np.int64)
        for at, row in enumerate(group):
            ids[at, : len(row)] = row
        known = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        yield {name: known[name] for name in names}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), float(sys.argv[2]), [Path(name) for name in sys.argv[3:]])))
