"""`make bench-v2`: tensors per second over the Open Inference Protocol, beside PyTriton and MLServer, over bare `session.run`.

One ONNX file, one client, the same tensors, in turns; each system with one session on every CPU and its own batching. Binary tensors where
the server reads them, JSON where it does not (MLServer 1.7 knows JSON alone), and this service with both. Medians and their spread are
written to `benchmarks/results/v2.json` and, for people, `v2.md`.
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import typer

from benchmarks import client, models
from benchmarks.environments import environment
from benchmarks.machine import heading, headline, summary, wait_until_idle
from benchmarks.measure import loaded, run_json
from benchmarks.models import HOME, Model
from benchmarks.places import PEERS, RESULTS, console
from benchmarks.process import OTHER_PORT, PORT, Served
from benchmarks.systems import served_here
from ortserve.cpus import available_cpus
from ortserve.tune.ports import free_port
from tests.v2 import binary_body, json_body

FOLDER = PEERS / "v2"
MODELS = {
    "resnet50": models.resnet50,
    "digits": models.digits,
}  # a heavy one, where the model decides, and one that costs next to nothing, where the server does
CONCURRENCIES = (8, 32)
# Of each system its name in the table, and whether its tensors are binary.
SYSTEMS = {
    "ours": ("this service, binary", True),
    "pytriton": ("PyTriton 0.7.0, binary", True),
    "ours_json": ("this service, JSON", False),
    "mlserver": ("MLServer 1.7.1, JSON", False),
}
PEERS_OF = {"ours": ("pytriton", "mlserver"), "ours_json": ("mlserver",)}


def main(rounds: int = 3, seconds: float = 3.0, write: bool = True) -> None:
    """Measure and write. SECONDS is the time of each measurement, after half a second or more of warming up."""
    for name in ("pytriton", "mlserver"):
        programs(name)
    made = {name: make() for name, make in MODELS.items()}
    idle = wait_until_idle()
    runs: dict[str, list[dict[str, Any]]] = {}
    bare: dict[str, list[float]] = {model: [] for model in MODELS}
    for model, package in made.items():
        files = tensor_files(package)
        with ExitStack() as started:
            servers = systems(package)
            for name in ("ours", "pytriton", "mlserver"):
                console.print(f"starting {name} on {model}")
                started.enter_context(servers[name])
            for turn in range(rounds):
                console.print(f"round {turn + 1} of {rounds}: {model}")
                bare[model].append(max(one["rows_per_s"] for one in run_json("benchmarks.bare", package.onnx, seconds / 2)))
                for callers in CONCURRENCIES:
                    for name in SYSTEMS:
                        run = loaded(servers[name], files[name], callers, seconds)
                        runs.setdefault(f"{model} {name} {callers}", []).append(run)
    result = {
        **heading("resnet50 (random weights) and digits, fp32", rounds, seconds, idle),
        "best_bare_rows_per_s": {model: summary(rates) for model, rates in bare.items()},
        "runs": {name: figures(of_name) for name, of_name in runs.items()},
        "over_bare": {
            f"{model} {name} {callers}": over([run["requests_per_s"] for run in runs[f"{model} {name} {callers}"]], bare[model])
            for model in MODELS
            for name in SYSTEMS
            for callers in CONCURRENCIES
        },
        "over_peer": {
            f"{model} {ours} over {peer} {callers}": over(
                *([run["requests_per_s"] for run in runs[f"{model} {name} {callers}"]] for name in (ours, peer))
            )
            for model in MODELS
            for ours, peers in PEERS_OF.items()
            for peer in peers
            for callers in CONCURRENCIES
        },
    }
    if write:
        (RESULTS / "v2.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (RESULTS / "v2.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def programs(name: str) -> Path:
    """The folder of programs of that peer's environment, the one it has in the other benches."""
    return environment(name, PEERS / name / "requirements.txt")


def systems(package: Model) -> Mapping[str, Served]:
    """Every server, not yet started, by the name of its measurement."""
    ours = served_here({"ORTSERVE_MODEL": package.name})
    common = {"MODEL": str(package.onnx), "CPUS": str(available_cpus())}
    pytriton = Served(
        [str(programs("pytriton") / "python"), "pytriton_app.py"],
        ready="/v2/models/model/ready",
        home=HOME,
        cwd=FOLDER,
        env={
            **common,
            "GRPC_PORT": OTHER_PORT,
            # Its interpreter is linked with libpython: this one's, or it takes the system's and finds a library of another version.
            "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        },
    )
    mlserver = Served(
        [str(programs("mlserver") / "mlserver"), "start", "mlserver"],
        ready="/v2/models/model/ready",
        home=HOME,
        cwd=FOLDER,
        env={
            **common,
            "MLSERVER_HTTP_PORT": PORT,
            "MLSERVER_GRPC_PORT": OTHER_PORT,
            "MLSERVER_METRICS_PORT": str(free_port()),
            "MLSERVER_PARALLEL_WORKERS": "0",  # the model in the process that answers, as here
            "MLSERVER_DEBUG": "false",
        },
    )
    return {"ours": ours, "ours_json": ours, "pytriton": pytriton, "mlserver": mlserver}


def tensor_files(package: Model) -> Mapping[str, Sequence[Path]]:
    """Eight requests of one row each for each system, no two alike: binary tensors for those that read them, JSON for the others."""
    [spec] = ort.InferenceSession(str(package.onnx), providers=["CPUExecutionProvider"]).get_inputs()
    files: dict[str, list[Path]] = {name: [] for name in SYSTEMS}
    for seed in range(8):
        inputs = {spec.name: np.random.default_rng(seed).integers(0, 256, (1, *spec.shape[1:]), dtype=np.uint8)}
        binary, length = binary_body(inputs, parameters={"binary_data_output": True})
        for name, (_, is_binary) in SYSTEMS.items():
            path = f"/v2/models/{package.name if name in PEERS_OF else 'model'}/infer"
            if is_binary:
                request = client.post(path, "application/octet-stream", binary, f"Inference-Header-Content-Length: {length}\r\n")
            else:
                request = client.post(path, "application/json", json_body(inputs))
            files[name].append(client.request_file(request))
    return files


def figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each figure of several runs by its median and spread; the answers that were no 200 counted."""
    names = ("requests_per_s", "p50_ms", "p99_ms", "server_cpu_s_per_request")
    return {name: summary([run[name] for run in runs]) for name in names} | {"failed": sum(run["failed"] for run in runs)}


def over(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """One rate over another, round by round, since the machine drifts."""
    return summary([one / max(other, 1e-9) for one, other in zip(ours, theirs, strict=True)])


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        headline(result, ", one row a request (lowest to highest); the client shares the CPUs."),
        "",
        "| model | callers | system | requests/s | over bare, by round | p50 ms | p99 ms | CPU ms/request | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    keys = ((model, name, callers) for model in MODELS for callers in CONCURRENCIES for name in SYSTEMS)
    return "\n".join([*lines, *(_row(result, *key) for key in keys)]) + "\n"


def _row(result: dict[str, Any], model: str, name: str, callers: int) -> str:
    key = f"{model} {name} {callers}"
    run = result["runs"][key]
    cells = [model, str(callers), SYSTEMS[name][0], _spread(run["requests_per_s"], 1), _spread(result["over_bare"][key], 2)]
    cells += [f"{run[figure]['median']:.1f}" for figure in ("p50_ms", "p99_ms")]
    cells += [f"{run['server_cpu_s_per_request']['median'] * 1000:.2f}", str(run["failed"])]
    return f"| {' | '.join(cells)} |"


def _spread(figure: dict[str, float], digits: int) -> str:
    return f"{figure['median']:.{digits}f} ({figure['min']:.{digits}f} to {figure['max']:.{digits}f})"


if __name__ == "__main__":
    typer.run(main)
