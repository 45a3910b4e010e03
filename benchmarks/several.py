"""`make bench-several`: what several models in one service cost each other, on their own threads. In turns, medians and their spread.

Isolation: the latency of one caller of a quiet model, alone and while another model has four times the requests it can answer.
Together: memory and throughput of four models, each in a service of its own and all in one. Written to `benchmarks/results/several.json`
and, for people, `several.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import typer
import yaml

from benchmarks import client, models
from benchmarks.machine import heading, headline, summary, wait_until_idle
from benchmarks.places import RESULTS, WORK, console
from benchmarks.process import Served, pss_bytes
from benchmarks.systems import served_here
from benchmarks.text import built, text_files

LOUD, QUIET = "resnet50", "minilm"
FOUR = ("resnet50", "near_empty", "digits", "minilm")
OVERLOAD = 4.0  # requests of the loud model for each that it can answer
CONNECTIONS = 256  # at most, of the open loop
CALLERS = 8  # of each model where all are loaded
PROFILE: Mapping[str, Any] = {
    "description": "several models, one thread each",
    "execution": [
        {
            "provider": "CPUExecutionProvider",
            "session": {"intra_op_num_threads": 1},
            "batching": {"max_batch_size": 4, "max_queue_size": 32},
            "text_batching": {"max_batch_size": 8, "max_batch_tokens": 256, "max_queue_size": 1024},
        }
    ],
    "images": {"decode_threads": 1},
}


def main(rounds: int = 5, seconds: float = 8.0, write: bool = True) -> None:
    """Measure and write. SECONDS is the time of each measurement, after half a second or more of warming up."""
    for build in (models.resnet50, models.near_empty, models.digits, built):
        build()
    files = requests()
    idle = wait_until_idle()
    profile = WORK / "several.yaml"
    result = heading("four models, fp32, a thread each", rounds, seconds, idle)
    result["isolation"] = isolation(written(profile, (LOUD, QUIET)), files, rounds, seconds)
    result["together"] = together(profile, files, rounds, seconds)
    if write:
        (RESULTS / "several.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (RESULTS / "several.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def written(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The environment of a service with those models."""
    path = path.with_stem(f"{path.stem}_{len(names)}_{names[0]}")
    path.write_text(yaml.safe_dump({**PROFILE, "models": [{"model": name} for name in names]}), encoding="utf-8")
    return {"ORTSERVE_PROFILE": str(path), "ORTSERVE_MODEL": ""}


def requests() -> dict[str, list[Path]]:
    """What each model is asked: the bench's pictures, an example's digit, texts of all lengths."""
    pictures = [path.read_bytes() for path in models.pictures(8)]
    digit = (models.ROOT / "examples" / "seven.png").read_bytes()
    return {
        "resnet50": [client.request_file(client.multipart("/classify?model=resnet50", [picture])) for picture in pictures],
        "near_empty": [client.request_file(client.multipart("/classify?model=near_empty", [picture])) for picture in pictures],
        "digits": [client.request_file(client.multipart("/classify?model=digits", [digit]))],
        "minilm": [client.as_request(Path(file), "/embed") for file in text_files()["embed", "single", "mixed"]],
    }


def isolation(env: Mapping[str, str], files: Mapping[str, Sequence[Path]], rounds: int, seconds: float) -> dict[str, Any]:
    """One caller of the quiet model: alone, and beside an open loop of `OVERLOAD` times what the loud one answers at 32 callers."""
    alone: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    loud: list[dict[str, Any]] = []
    capacity: list[float] = []
    with served_here(env) as served, ThreadPoolExecutor(1) as pool:
        for turn in range(rounds):
            console.print(f"isolation, round {turn + 1} of {rounds}")
            capacity.append(client.load(served.port, 32, seconds, files[LOUD])["requests_per_s"])
            alone.append(client.load(served.port, 1, seconds, files[QUIET]))
            # Longer than the quiet one's window, at both ends.
            pressing = pool.submit(client.load, served.port, CONNECTIONS, seconds + 3, files[LOUD], rate=OVERLOAD * capacity[-1], seed=turn)
            beside.append(client.load(served.port, 1, seconds, files[QUIET]))
            loud.append(pressing.result())
    return {
        "capacity_per_s": summary(capacity),
        "loud_answered_per_s": summary([run["requests_per_s"] for run in loud]),
        "loud_refused": sum(run["failed"] for run in loud),
        "quiet_failed": sum(run["failed"] for run in (*alone, *beside)),
        "alone": {key: summary([run[key] for run in alone]) for key in ("p50_ms", "p99_ms", "requests_per_s")},
        "beside": {key: summary([run[key] for run in beside]) for key in ("p50_ms", "p99_ms", "requests_per_s")},
        "p50_over_alone": summary([one["p50_ms"] / other["p50_ms"] for one, other in zip(beside, alone, strict=True)]),
        "p99_over_alone": summary([one["p99_ms"] / other["p99_ms"] for one, other in zip(beside, alone, strict=True)]),
        "goodput_over_capacity": summary([run["requests_per_s"] / limit for run, limit in zip(loud, capacity, strict=True)]),
    }


def together(profile: Path, files: Mapping[str, Sequence[Path]], rounds: int, seconds: float) -> dict[str, Any]:
    """Requests per second and memory of each model alone in a service, of each in the service of all four, and of all four at once."""
    rates: dict[str, dict[str, list[float]]] = {name: {"alone": [], "in_four": [], "at_once": []} for name in FOUR}
    memory: dict[str, list[float]] = {name: [] for name in (*FOUR, "four")}
    failed = 0

    def answered(served: Served, name: str, key: str) -> None:
        nonlocal failed
        run = client.load(served.port, CALLERS, seconds, files[name])
        rates[name][key].append(run["requests_per_s"])
        failed += run["failed"]

    for turn in range(rounds):
        console.print(f"together, round {turn + 1} of {rounds}")
        for name in FOUR:
            with served_here(written(profile, (name,))) as served:
                answered(served, name, "alone")
                memory[name].append(pss_bytes(served.processes()) / 2**20)
        with served_here(written(profile, FOUR)) as served:
            for name in FOUR:
                answered(served, name, "in_four")
            with ThreadPoolExecutor(len(FOUR)) as pool:
                list(pool.map(lambda name, served=served: answered(served, name, "at_once"), FOUR))
            memory["four"].append(pss_bytes(served.processes()) / 2**20)
    return {
        "models": {
            name: {
                **{key: summary(values) for key, values in of_model.items()},
                "in_four_over_alone": summary([one / other for one, other in zip(of_model["in_four"], of_model["alone"], strict=True)]),
                "at_once_over_alone": summary([one / other for one, other in zip(of_model["at_once"], of_model["alone"], strict=True)]),
            }
            for name, of_model in rates.items()
        },
        "pss_mib": {name: summary(values) for name, values in memory.items()},
        "four_over_sum": summary(
            [four / sum(memory[name][turn] for name in FOUR) for turn, four in enumerate(memory["four"])],
        ),
        "shares": summary(
            [sum(rates[name]["at_once"][turn] / rates[name]["alone"][turn] for name in FOUR) for turn in range(rounds)],
        ),
        "failed": failed,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    alone, beside = result["isolation"]["alone"], result["isolation"]["beside"]
    one, all_four = result["isolation"], result["together"]
    shown = {"alone": alone, f"beside {LOUD} at {OVERLOAD:.0%} of its capacity": beside}
    lines = [
        headline(result, f"; the clients share the {os.cpu_count()} CPUs."),
        "",
        f"One caller of `{QUIET}` (mixed texts), and `{LOUD}` in the same process:",
        "",
        "| | p50 ms | p99 ms | requests/s |",
        "|---|---|---|---|",
        *(
            f"| {label} | {_spread(run['p50_ms'], 1)} | {_spread(run['p99_ms'], 1)} | {_spread(run['requests_per_s'], 0)} |"
            for label, run in shown.items()
        ),
        f"| beside over alone, by round | {_spread(one['p50_over_alone'], 2)} | {_spread(one['p99_over_alone'], 2)} | |",
        "",
        f"`{LOUD}` meanwhile answered {_spread(one['goodput_over_capacity'], 2)} of its capacity ({one['capacity_per_s']['median']:.1f} "
        f"requests/s) and refused {one['loud_refused']}; of `{QUIET}` {one['quiet_failed']} failed.",
        "",
        f"{CALLERS} callers of each model:",
        "",
        "| model | alone: requests/s | memory (PSS), MiB | among four, the others at rest, over alone | all four at once, over alone |",
        "|---|---|---|---|---|",
    ]
    for name in FOUR:
        run = all_four["models"][name]
        lines.append(
            f"| `{name}` | {_spread(run['alone'], 1)} | {all_four['pss_mib'][name]['median']:.0f} "
            f"| {_spread(run['in_four_over_alone'], 2)} | {_spread(run['at_once_over_alone'], 2)} |"
        )
    lines += [
        f"| all four | | {all_four['pss_mib']['four']['median']:.0f}, {all_four['four_over_sum']['median']:.2f} of the sum | "
        f"| {_spread(all_four['shares'], 2)} in sum |",
        "",
        f"{all_four['failed']} requests failed.",
    ]
    return "\n".join(lines) + "\n"


def _spread(figure: Mapping[str, float], digits: int) -> str:
    return f"{figure['median']:.{digits}f} ({figure['min']:.{digits}f} to {figure['max']:.{digits}f})"


if __name__ == "__main__":
    typer.run(main)
