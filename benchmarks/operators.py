"""`make bench-operators`: what int8 gains over fp32 without a server, and which operators the time of a run goes to, in turns.

Writes `benchmarks/results/operators.json` and `operators.md`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import typer

from benchmarks import models
from benchmarks.bare import measure
from benchmarks.machine import heading, headline, summary, wait_until_idle
from benchmarks.places import RESULTS, console
from ortserve.cpus import available_cpus
from ortserve.execution import Execution, Session
from ortserve.providers import providers, session_options

PRECISIONS = ("fp32", "int8")
RUNS = 20  # of those that are profiled; as many before them are not counted
SHOWN = 0.005  # of either precision's time; operators below it share a line


def setups() -> list[dict[str, Any]]:
    """A thread for each caller, with one picture and with four; all threads for one caller."""
    cpus = available_cpus()
    each = [{"threads": 1, "callers": cpus, "batch": batch, "spinning": False} for batch in (1, 4)]
    return [*each, {"threads": cpus, "callers": 1, "batch": 1, "spinning": False}]


def main(rounds: int = 3, seconds: float = 3.0) -> None:
    """Measure and write. SECONDS is the time of each measurement."""
    folder = models.resnet50().folder
    idle = wait_until_idle()
    gains: list[list[float]] = [[] for _ in setups()]
    for turn in range(rounds):
        for index, setup in enumerate(setups()):
            console.print(f"round {turn + 1} of {rounds}: {_shown(setup)}")
            rates = {precision: measure(folder / f"{precision}.onnx", seconds, setup)["rows_per_s"] for precision in PRECISIONS}
            gains[index].append(rates["int8"] / rates["fp32"])
    result = {
        **heading("resnet50", rounds, seconds, idle),
        "int8_over_fp32": [{"setup": setup, **summary(values)} for setup, values in zip(setups(), gains, strict=True)],
        "operators_ms": {precision: operators_ms(folder / f"{precision}.onnx") for precision in PRECISIONS},
    }
    (RESULTS / "operators.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "operators.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def operators_ms(path: Path) -> dict[str, dict[str, float]]:
    """Of one run on one picture and one thread: how many nodes there are of each operator, and their milliseconds together."""
    execution = Execution(provider="CPUExecutionProvider", session=Session(intra_op_num_threads=1, allow_spinning=False))
    options = session_options(execution)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = ort.InferenceSession(path, options, providers=providers(execution))
        given = session.get_inputs()[0]
        pixels = np.random.default_rng(0).integers(0, 256, (1, *given.shape[1:]), dtype=np.uint8)
        for _ in range(2 * RUNS):
            session.run(["probabilities"], {given.name: pixels})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    counted = nodes[len(nodes) // 2 :]
    kinds = Counter(event["args"]["op_name"] for event in counted)
    spent = {kind: sum(event["dur"] for event in counted if event["args"]["op_name"] == kind) for kind in kinds}
    return {kind: {"nodes": kinds[kind] / RUNS, "ms": spent[kind] / RUNS / 1000} for kind in sorted(kinds, key=lambda kind: -spent[kind])}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"{headline(result)}.", "", "| without a server | int8 over fp32, pictures/s (min to max) |", "|---|---|"]
    for one in result["int8_over_fp32"]:
        lines.append(f"| {_shown(one['setup'])} | {one['median']:.2f} ({one['min']:.2f} to {one['max']:.2f}) |")
    lines += ["", "| operator of ONNX Runtime | fp32, ms of a run on one thread (nodes) | int8 |", "|---|---|---|"]
    of: dict[str, dict[str, dict[str, float]]] = result["operators_ms"]
    total = {precision: sum(one["ms"] for one in of[precision].values()) for precision in PRECISIONS}
    shown = [
        kind for kind in dict.fromkeys([*of["fp32"], *of["int8"]])
        if any(of[precision].get(kind, {"ms": 0})["ms"] >= SHOWN * total[precision] for precision in PRECISIONS)
    ]  # fmt: skip
    for kind in shown:
        cells = [f"{one['ms']:.2f} ({one['nodes']:.0f})" if (one := of[precision].get(kind)) else "-" for precision in PRECISIONS]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    rest = [sum(one["ms"] for kind, one in of[precision].items() if kind not in shown) for precision in PRECISIONS]
    lines.append(f"| all others | {' | '.join(f'{ms:.2f}' for ms in rest)} |")
    lines.append(f"| together | {' | '.join(f'{total[precision]:.1f}' for precision in PRECISIONS)} |")
    return "\n".join(lines) + "\n"


def _shown(setup: dict[str, Any]) -> str:
    who = f"{setup['callers']} callers with a thread each" if setup["threads"] == 1 else f"one caller with {setup['threads']} threads"
    return f"{who}, batches of {setup['batch']}"


if __name__ == "__main__":
    typer.run(main)
