"""`make bench-quick`: what HTTP keeps of bare `session.run`, beside BentoML's own batching, in one run; start-up and memory.

Everything is run in turns over several rounds, so that a drift of the machine hits all alike; medians and their spread are written to
`benchmarks/results/quick.json` and, for people, `quick.md` and `start.md`. Absolute figures are this machine's; the ratios are what counts.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import typer
from PIL import Image
from rich.console import Console

from ortserve.cpus import available_cpus
from tests.serving import DIGITS, ROOT, Server, bentoml, bentoml_environment

RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / "work"  # the store with the built model: made once, ignored by git
PEERS = ROOT / "benchmarks" / "peers"
CONCURRENCIES = (1, 8, 32)
console = Console(stderr=True)


def main(rounds: int = 5, seconds: float = 6.0, model: str = "resnet50") -> None:
    """Measure and write `benchmarks/results/quick.json` and `quick.md`. SECONDS is the time of each measurement."""
    home, onnx = built_model(model)
    pictures = picture_files()
    idle = wait_until_idle()
    bare: list[list[dict[str, float]]] = []
    http: dict[str, dict[int, list[dict[str, Any]]]] = {name: {level: [] for level in CONCURRENCIES} for name in ("ours", "batchable")}
    with ours_and_batchable(home, model) as servers:
        for turn in range(rounds):
            console.print(f"round {turn + 1} of {rounds}: bare session.run")
            bare.append(run_json("benchmarks.bare", onnx, seconds / 2))
            for name, server in servers.items():
                for level in CONCURRENCIES:
                    console.print(f"round {turn + 1} of {rounds}: {name}, {level} callers")
                    http[name][level].append(load(server, level, seconds, pictures))
    result = {
        **heading(f"{model}, fp32, random weights", rounds, seconds, idle),
        "bare": [summary([one[index]["rows_per_s"] for one in bare]) | setup(bare[0][index]) for index in range(len(bare[0]))],
        "http": {name: {str(level): http_summary(runs) for level, runs in levels.items()} for name, levels in http.items()},
        "start": start_and_memory(home),
    }
    result["ratios"] = ratios(bare, http)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "quick.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "quick.md").write_text(table(result), encoding="utf-8")
    (RESULTS / "start.md").write_text(start_table(result), encoding="utf-8")
    print(table(result), start_table(result), sep="\n")


@contextlib.contextmanager
def ours_and_batchable(home: Path, model: str) -> Iterator[dict[str, Server]]:
    """This service and BentoML's own batching around the same session, both ready on that model."""
    environment = {"ORTSERVE_MODEL": model}
    with (
        Server(home, env=environment) as ours,
        Server(home, target="service:Batchable", cwd=PEERS / "batchable", env={**environment, "PYTHONPATH": str(ROOT)}) as batchable,
    ):
        yield {"ours": ours, "batchable": batchable}


def heading(model: str, rounds: int, seconds: float, idle: float) -> dict[str, Any]:
    """What every result begins with: when, on what machine, of which model, for how long."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"busy_before_ratio": idle},
        "model": model,
        "rounds": rounds,
        "seconds_each": seconds,
    }


def built_model(model: str) -> tuple[Path, Path]:
    """The BENTOML_HOME and the ONNX file of `model` with random weights, built where it is not there yet."""
    home = WORK / "bentoml"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / "models" / model
    if not (folder / "latest").exists():
        console.print(f"building {model} once (random weights, seed 0)")
        subprocess.run(
            [sys.executable, "build_model.py", model, "--weights", "random", "--seed", "0"],
            cwd=ROOT,
            env=bentoml_environment(home),
            check=True,
        )
    if not (home / "models" / "digits" / "latest").exists():
        bentoml(home, "models", "import", str(DIGITS))
    return home, folder / (folder / "latest").read_text().strip() / "fp32.onnx"


def picture_files() -> list[str]:
    """Eight JPEG files of about 50 KB, 500 x 375: smooth noise, so that they decode like photographs and not like flat colour."""
    folder = WORK / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.jpg" for index in range(8)]
    for seed, path in enumerate(paths):
        if not path.exists():
            pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
            path.write_bytes(buffer.getvalue())
    return [str(path) for path in paths]


def wait_until_idle(limit: float = 0.1, patience_s: float = 60.0) -> float:
    """The share of the CPUs in use just before measuring, 0 to 1; waits up to a minute for it to fall below a tenth."""
    deadline = time.monotonic() + patience_s
    while (busy := psutil.cpu_percent(interval=2) / 100) > limit and time.monotonic() < deadline:
        console.print(f"the machine is {busy:.0%} busy, waiting")
    if busy > limit:
        console.print(f"[red]measuring on a machine that is {busy:.0%} busy: these figures say little[/red]")
    return busy


def run_json(module: str, *arguments: object) -> Any:
    """The JSON that a measurement prints in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return json.loads(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout)


def load(server: Server, level: int, seconds: float, pictures: Sequence[str]) -> dict[str, Any]:
    """A closed loop of `level` callers; with the CPU seconds the server's processes used for each request."""
    before = cpu_seconds(server)
    run: dict[str, Any] = run_json("benchmarks.client", server.port, "/classify", level, seconds, *pictures)
    total = run["requests"] * (seconds + 1.5) / seconds  # the warm-up's requests used CPU as well
    return run | {"server_cpu_s_per_request": (cpu_seconds(server) - before) / max(total, 1)}


def cpu_seconds(server: Server) -> float:
    """CPU seconds, user and system, of all processes of a server so far."""
    return sum(times.user + times.system for process in server.processes() if (times := process.cpu_times()))


def pss_bytes(server: Server) -> int:
    """Proportional set size of the whole process tree: memory it shares with others counted in parts."""
    return sum(process.memory_full_info().pss for process in server.processes())


def start_and_memory(home: Path, starts: int = 3) -> dict[str, Any]:
    """Seconds from the command to a ready service, and its memory, for `digits` and for an empty BentoML service, in turns."""
    kinds: dict[str, Callable[[], Server]] = {
        "ours_digits": lambda: Server(home, env={"ORTSERVE_MODEL": "digits"}),
        "empty_bentoml": lambda: Server(home, target="service:Empty", cwd=PEERS / "empty"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    memory: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(starts + 1):
        for name, start in kinds.items():
            console.print(f"start {turn} of {starts}: {name}")
            began = time.perf_counter()
            with start() as server:
                took = time.perf_counter() - began
                if turn:  # the first start fills the file cache and is not the second start that is asked for
                    seconds[name].append(took)
                    memory[name].append(pss_bytes(server) / 2**20)
    return {name: {"ready_s": summary(seconds[name]), "pss_mib": summary(memory[name])} for name in kinds}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def setup(run: dict[str, float]) -> dict[str, float]:
    """What was varied in a bare measurement."""
    return {key: run[key] for key in ("threads", "callers", "batch")}


def http_summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each figure of several runs by its median and spread; the answers that were no 200 counted."""
    figures = ("requests_per_s", "p50_ms", "p99_ms", "server_cpu_s_per_request", "client_cpu_s")
    failed = sum(count for run in runs for status, count in run["statuses"].items() if status != "200")
    return {name: summary([run[name] for run in runs]) for name in figures} | {"failed": failed}


def ratios(bare: Sequence[Sequence[dict[str, float]]], http: dict[str, dict[int, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Requests per second over the best bare set-up, and over the peer: round by round, since the machine drifts; medians and spread."""
    best = [max(one["rows_per_s"] for one in setups) for setups in bare]

    def over(rates: Sequence[float], others: Sequence[float]) -> dict[str, float]:
        return summary([rate / other for rate, other in zip(rates, others, strict=True)])

    rates = {name: {level: [run["requests_per_s"] for run in runs] for level, runs in levels.items()} for name, levels in http.items()}
    return {
        "best_bare_rows_per_s": summary(best),
        "over_bare": {name: {str(level): over(runs, best) for level, runs in levels.items()} for name, levels in rates.items()},
        "over_batchable": {str(level): over(rates["ours"][level], rates["batchable"][level]) for level in CONCURRENCIES},
    }


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    return {"cpu": model, "cpus": available_cpus(), "python": sys.version.split()[0], "onnxruntime": onnxruntime.__version__}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    best = result["ratios"]["best_bare_rows_per_s"]["median"]
    lines = [
        f"Measured {result['measured_at'][:10]} on {result['machine']['cpus']} CPUs ({result['machine']['cpu']}), {result['model']}, "
        f"medians of {result['rounds']} rounds of {result['seconds_each']:g} s in turns. Best bare `session.run`: {best:.1f} pictures/s.",
        "",
        "| callers | system | requests/s (min to max) | over bare, by round | p50 ms | p99 ms | CPU ms/request | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = {"ours": "this service, default profile", "batchable": "BentoML `batchable=True`, same session"}
    for level in CONCURRENCIES:
        for name, shown in names.items():
            one = result["http"][name][str(level)]
            rate = one["requests_per_s"]
            ratio = result["ratios"]["over_bare"][name][str(level)]
            p50, p99, cpu = (one[key]["median"] for key in ("p50_ms", "p99_ms", "server_cpu_s_per_request"))
            lines.append(
                f"| {level} | {shown} | {rate['median']:.1f} ({rate['min']:.1f} to {rate['max']:.1f}) "
                f"| {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) "
                f"| {p50:.0f} | {p99:.0f} | {cpu * 1000:.0f} | {one['failed']} |"
            )
    return "\n".join(lines) + "\n"


def start_table(result: dict[str, Any]) -> str:
    """What a start costs, as Markdown."""
    lines = ["| start | seconds to ready | memory (PSS), MiB |", "|---|---|---|"]
    shown_starts = {"ours_digits": "this service, `digits`", "empty_bentoml": "an empty `bentoml serve`"}
    for name, shown in shown_starts.items():
        one = result["start"][name]
        lines.append(f"| {shown} | {one['ready_s']['median']:.1f} | {one['pss_mib']['median']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
