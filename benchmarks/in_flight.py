"""What two batches at once bring on the CPU, without HTTP: `python -m benchmarks.in_flight` writes `benchmarks/results/in_flight.*`.

Three ways to run a session on every CPU, in turns, each as many rows at a time: one batch, spread over all threads; a batch for each
CPU through `Session.run`, as the batcher does with `max_in_flight`; and a single-threaded session beside it, run once for each CPU.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import typer

from benchmarks import models as packages
from benchmarks.callers import hammer
from benchmarks.machine import heading, headline, summary, wait_until_idle
from benchmarks.places import RESULTS, console
from benchmarks.text import built, package
from ortserve.cpus import available_cpus
from ortserve.execution import Execution
from ortserve.execution import Session as Options
from ortserve.session import Session, Tensors

WAYS = {
    "wide": "one batch, every thread",
    "shared": "a batch for each CPU, one session",
    "apart": "a batch for each CPU, single-threaded session of their own",
}
ROWS = (1, 2, 16)
PICTURE = 0  # tokens: a row of no length


def main(rounds: int = 5, seconds: float = 1.5) -> None:
    """Measure and write. SECONDS is the time of each measurement."""
    built()
    models = {"resnet50": (packages.resnet50().onnx, "probabilities"), "all-MiniLM-L6-v2": (package() / "fp32.onnx", "embedding")}
    idle = wait_until_idle()
    cases: list[dict[str, Any]] = []
    memory: dict[str, float] = {}  # of the first model alone: later ones find memory that the first has freed
    for model, (path, output) in models.items():
        before = pss_mib()
        wide = opened(path, output, available_cpus())
        with_one = pss_mib()
        narrow = opened(path, output, 1)
        if not memory:
            memory[model] = (pss_mib() - with_one) / (with_one - before)
        for rows, tokens in product(ROWS, (16, 128) if wide.ragged else (PICTURE,)):
            if rows * tokens > 512 or (tokens == PICTURE and rows > 2):
                continue  # more than the default profile puts into one batch
            inputs = filled(wide, rows, tokens)
            console.print(f"{model}: {rows} rows of {tokens} tokens")
            runs: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, session, callers in (("wide", wide, 1), ("shared", wide, available_cpus()), ("apart", narrow, available_cpus())):
                    runs[way].append(measured(session, inputs, rows, callers, seconds))
            cases.append(
                {
                    "model": model,
                    "rows": rows,
                    "tokens": tokens,
                    "rows_per_s": {way: summary([rate for rate, _ in of_way]) for way, of_way in runs.items()},
                    "p50_ms": {way: summary([p50 for _, p50 in of_way]) for way, of_way in runs.items()},
                    "over_wide": {
                        way: summary([rate / wide_rate for (rate, _), (wide_rate, _) in zip(of_way, runs["wide"], strict=True)])
                        for way, of_way in runs.items()
                    },
                }
            )
    result = {**heading(", ".join(models), rounds, seconds, idle), "cases": cases, "memory_of_a_second_session_over_the_first": memory}
    (RESULTS / "in_flight.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "in_flight.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def opened(path: Path, output: str, threads: int) -> Session:
    """A session of so many threads, with the default profile's options."""
    options = Options(intra_op_num_threads=threads, enable_mem_pattern=output == "probabilities")
    return Session.open(path, Execution(provider="CPUExecutionProvider", session=options), outputs=[output])


def filled(session: Session, rows: int, tokens: int) -> Tensors:
    """Inputs of small numbers, as good as any for how long a run takes."""
    chance = np.random.default_rng(0)
    shapes = {spec.name: (rows, *(dim if isinstance(dim, int) else tokens for dim in spec.shape[1:])) for spec in session.inputs}
    most = {"attention_mask": 1, "token_type_ids": 0}
    return {
        spec.name: np.maximum(chance.integers(0, 256, shapes[spec.name]), spec.name == "attention_mask")
        .clip(0, most.get(spec.name, 255))
        .astype(spec.dtype)
        for spec in session.inputs
    }


def measured(session: Session, inputs: Tensors, rows: int, callers: int, seconds: float) -> tuple[float, float]:
    """Rows per second of so many callers at once, and the median milliseconds of a batch."""
    session.run(inputs)
    calls_per_s, median_ms = hammer(lambda: session.run(inputs), callers, seconds)
    return calls_per_s * rows, median_ms


def pss_mib() -> float:
    """Memory of this process."""
    return float(psutil.Process().memory_full_info().pss) / 2**20


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        headline(result, ", without HTTP; ratios round by round (lowest to highest)."),
        "",
        f"| model | rows in a batch | {' | '.join(f'rows/s: {shown}' for shown in WAYS.values())} | second over first | third over first |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        rates = " | ".join(f"{case['rows_per_s'][way]['median']:.0f}" for way in WAYS)
        ratios = " | ".join("{median:.2f} ({min:.2f} to {max:.2f})".format(**case["over_wide"][way]) for way in ("shared", "apart"))
        rows = f"{case['rows']} of {case['tokens']} tokens" if case["tokens"] else str(case["rows"])
        lines.append(f"| {case['model']} | {rows} | {rates} | {ratios} |")
    shares = ", ".join(f"{ratio:.1f} for {model}" for model, ratio in result["memory_of_a_second_session_over_the_first"].items())
    lines += ["", f"Memory of the second session over the first's: {shares}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
