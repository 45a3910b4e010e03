"""`make bench-techniques`: what single techniques gain: a profile over the same with one thing changed, both up, in turns, round by round.

Writes `benchmarks/results/techniques.json` and `techniques.md`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import yaml

from benchmarks import graphs, measure
from benchmarks.figures import ByRound, ratios
from benchmarks.machine import heading, headline, summary, wait_until_idle
from benchmarks.places import PEERS, RESULTS, WORK, console
from benchmarks.plan import Case
from benchmarks.systems import BY_NAME, served_here
from ortserve.cpus import available_cpus
from ortserve.profile_file import SHIPPED
from tests.serving import ROOT


@dataclass(frozen=True)
class Technique:
    """`without` is laid over the profile, `execution` over its CPU part, `env` over the environment: that, or `compiled`, takes it away."""

    name: str
    shown: str
    case: Case
    callers: int
    without: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    profile: str = "default"
    compiled: bool = True  # False: what the service is where there was no compiler


HIDING = {"PYTHONPATH": str(PEERS / "without")}
TECHNIQUES = (
    Technique(
        "uvloop_httptools", "uvloop and httptools, over asyncio and h11", "near_empty", 32, env=HIDING | {"WITHOUT": "uvloop,httptools"}
    ),
    Technique("uvloop", "uvloop alone, over asyncio", "near_empty", 32, env=HIDING | {"WITHOUT": "uvloop"}),
    Technique("no_access_log", "no line in a log for each request", "near_empty", 32, without={"logging": {"access_log": True}}),
    Technique("no_tracing", "no tracing, over a span for one request in ten", "near_empty", 32, without={"tracing": {"enabled": True}}),
    Technique(
        "decode_threads",
        "a CPU that decoding leaves to the event loop, over a decoding thread for each",
        "near_empty",
        32,
        without={"images": {"decode_threads": available_cpus()}},
    ),
    Technique(
        "native_threads",
        "JPEGs decoded by threads that do not want the interpreter, over Python's",
        "near_empty",
        32,
        env=HIDING | {"WITHOUT": "os.eventfd"},  # without which there are none
    ),
    Technique(
        "compiled",
        "C of this project's own, of which JPEGs' threads are a part: the crop decoded and resized, over Pillow",
        "near_empty",
        32,
        compiled=False,
    ),
    Technique("batches", "batches, over one by one", "near_empty", 32, execution={"brief_batching": {"max_batch_size": 1}}),
    Technique("batches_resnet50", "the same", "resnet50", 32, execution={"batching": {"max_batch_size": 1}}),
    Technique(
        "brief",
        "batches of up to eight rows of a cheap model, over three",
        "near_empty",
        32,
        execution={"brief_batching": {"max_batch_size": 3}},
    ),
    Technique("in_flight", "two batches in flight, over one", "resnet50", 32, execution={"batching": {"max_in_flight": 1}}),
    Technique("arena", "ONNX Runtime's memory arena, over none", "resnet50", 8, execution={"session": {"enable_cpu_mem_arena": False}}),
    Technique(
        "spinning",
        "threads that look for work for a moment before they sleep, over sleeping at once",
        "resnet50",
        1,
        execution={"session": {"allow_spinning": False}},
    ),
    Technique("every_cpu", "every CPU on one batch, over one thread", "resnet50", 8, execution={"session": {"intra_op_num_threads": 1}}),
    Technique(
        "workers",
        "a worker for two CPUs, over one for each, in the light profile",
        "near_empty",
        32,
        without={"workers": available_cpus()},
        profile="light",
    ),
)
SHOWN_CASES = {"near_empty": "near-empty model", "resnet50": "`resnet50`"}


def main(rounds: int = 5, seconds: float = 3.0) -> None:
    """Measure and write. SECONDS is the time of each measurement."""
    asked_in = {one.case: measure.asked_of(one.case, BY_NAME["default"]) for one in TECHNIQUES}
    idle = wait_until_idle()
    rates: dict[str, dict[str, ByRound]] = {one.name: {"with": {}, "without": {}} for one in TECHNIQUES}
    graph: dict[str, list[float]] = {}
    for number, one in enumerate(TECHNIQUES, 1):
        console.print(f"{number} of {len(TECHNIQUES)}: {one.name}")
        asked = asked_in[one.case]
        model = {"ORTSERVE_MODEL": asked.model.name}
        without = {**model, **one.env, "ORTSERVE_PROFILE": str(changed(one))}
        # Both are up, and in turns one or the other comes first: neither what the machine does meanwhile nor the order counts.
        with (
            served_here({**model, "ORTSERVE_PROFILE": one.profile}) as its,
            served_here(without, ROOT if one.compiled else plain()) as other,
        ):
            ways = {"with": its, "without": other}
            for turn in range(rounds):
                for way in reversed(ways) if turn % 2 else ways:
                    point = measure.loaded(ways[way], asked.files, one.callers, seconds, seed=turn)
                    rates[one.name][way][turn] = point["requests_per_s"]
    for turn in range(rounds):
        console.print(f"graphs: round {turn + 1} of {rounds}")
        for name, value in graphs.gains(seconds).items():
            graph.setdefault(name, []).append(value)
    gains = {one.name: summary(ratios(rates[one.name]["with"], rates[one.name]["without"])) for one in TECHNIQUES}
    result: dict[str, Any] = {
        **heading("default profile where none is named", rounds, seconds, idle),
        "gains": {one.name: {"case": one.case, "callers": one.callers, **gains[one.name]} for one in TECHNIQUES},
        "graph": {name: summary(values) for name, values in graph.items()},
    }
    (RESULTS / "techniques.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "techniques.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def changed(technique: Technique) -> Path:
    """The profile without the technique, as a file."""
    content = yaml.safe_load((SHIPPED / f"{technique.profile}.yaml").read_text(encoding="utf-8"))
    _lay(content, technique.without)
    _lay(content["execution"][-1], technique.execution)  # the CPU's
    path = WORK / "profiles" / f"{technique.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"{headline(result)}.", "", "| technique | where | requests/s with it over without (min to max) |", "|---|---|---|"]
    for one in TECHNIQUES:
        gain = result["gains"][one.name]
        where = f"{SHOWN_CASES[one.case]}, {one.callers} caller{'s' * (one.callers > 1)}"
        lines.append(f"| {one.shown} | {where} | {gain['median']:.2f} ({gain['min']:.2f} to {gain['max']:.2f}) |")
    graph = {name: f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})" for name, found in result["graph"].items()}
    lines += [
        "",
        "| in process | |",
        "|---|---|",
        f"| ONNX Runtime's fusions, `resnet50`: pictures/s with all over none | {graph['fusions']} |",
        f"| onnxsim before them: pictures/s with it over without | {graph['onnxsim']} |",
        f"| onnxsim, with ONNX Runtime's fusions off | {graph['onnxsim_alone']} |",
        f"| weights packed for the kernels at the start: pictures/s with it over without | {graph['prepacking']} |",
        f"| normalising in NumPy, ms for each picture, GIL held | {graph['numpy_ms']} |",
        f"| normalising in the graph: the whole near-empty model from `uint8`, ms | {graph['in_graph_ms']} |",
    ]
    return "\n".join(lines) + "\n"


def plain() -> Path:
    """A copy of the service in which nothing was compiled."""
    folder = WORK / "uncompiled"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("ortserve", "profiles"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "service.py", folder)
    return folder


def _lay(over: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Lay the changes over a nested mapping, in place."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            _lay(over.setdefault(key, {}), value)
        else:
            over[key] = value


if __name__ == "__main__":
    typer.run(main)
