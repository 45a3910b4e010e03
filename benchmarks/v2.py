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

from benchmarks.embedders import Peer, environment
from benchmarks.quick import (
    PEERS,
    RESULTS,
    WORK,
    built_model,
    console,
    cpu_seconds,
    heading,
    http_summary,
    run_json,
    summary,
    wait_until_idle,
)
from ortserve.cpus import available_cpus
from tests.serving import Server, free_port
from tests.v2 import binary_body, json_body

FOLDER = PEERS / "v2"
MODELS = ("resnet50", "digits")  # a heavy one, where the model decides, and one that costs next to nothing, where the server does
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
    """Measure and write. SECONDS is the time of each measurement, after 1.5 of warming up."""
    for name in ("pytriton", "mlserver"):
        environment(name, FOLDER)
    home, _ = built_model("resnet50")
    idle = wait_until_idle()
    runs: dict[str, list[dict[str, Any]]] = {}
    bare: dict[str, list[float]] = {model: [] for model in MODELS}
    for model in MODELS:
        onnx = onnx_file(home, model)
        bodies = tensor_files(onnx, model)
        with ExitStack() as started:
            servers = systems(home, model, onnx)
            for name in ("ours", "pytriton", "mlserver"):
                console.print(f"starting {name} on {model}")
                started.enter_context(servers[name])
            for turn in range(rounds):
                console.print(f"round {turn + 1} of {rounds}: {model}")
                bare[model].append(max(one["rows_per_s"] for one in run_json("benchmarks.bare", onnx, seconds / 2)))
                for callers in CONCURRENCIES:
                    for name in SYSTEMS:
                        runs.setdefault(f"{model} {name} {callers}", []).append(load(name, servers[name], model, callers, seconds, bodies))
    result = {
        **heading("resnet50 (random weights) and digits, fp32", rounds, seconds, idle),
        "best_bare_rows_per_s": {model: summary(rates) for model, rates in bare.items()},
        "runs": {name: http_summary(of_name) for name, of_name in runs.items()},
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


def systems(home: Path, model: str, onnx: Path) -> Mapping[str, Any]:
    """Every server, not yet started, by the name of its measurement."""
    ours = Server(home, env={"ORTSERVE_MODEL": model})
    common = {"MODEL": str(onnx), "CPUS": str(available_cpus())}
    pytriton = Peer(
        [str(environment("pytriton", FOLDER) / "python"), str(FOLDER / "pytriton_app.py")],
        ready="/v2/models/model/ready",
        path="/v2/models/model/infer",
        env={
            **common,
            "PORT": "{port}",
            "GRPC_PORT": str(free_port()),
            # Its interpreter is linked with libpython: this one's, or it takes the system's and finds a library of another version.
            "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
        },
    )
    mlserver = Peer(
        [str(environment("mlserver", FOLDER) / "mlserver"), "start", str(FOLDER / "mlserver")],
        ready="/v2/models/model/ready",
        path="/v2/models/model/infer",
        env={
            **common,
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": str(free_port()),
            "MLSERVER_METRICS_PORT": str(free_port()),
            "MLSERVER_PARALLEL_WORKERS": "0",  # the model in the process that answers, as here
            "MLSERVER_DEBUG": "false",
        },
    )
    return {"ours": ours, "ours_json": ours, "pytriton": pytriton, "mlserver": mlserver}


def onnx_file(home: Path, model: str) -> Path:
    """The fp32 file of a model in that store."""
    folder = home / "models" / model
    return folder / (folder / "latest").read_text().strip() / "fp32.onnx"


def tensor_files(onnx: Path, model: str) -> Mapping[bool, Sequence[str]]:
    """Eight bodies of one row each, no two alike: as binary tensors (True) and as JSON (False)."""
    [spec] = ort.InferenceSession(str(onnx), providers=["CPUExecutionProvider"]).get_inputs()
    folder = WORK / "tensors"
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[bool, list[str]] = {True: [], False: []}
    for seed in range(8):
        inputs = {spec.name: np.random.default_rng(seed).integers(0, 256, (1, *spec.shape[1:]), dtype=np.uint8)}
        binary, length = binary_body(inputs, parameters={"binary_data_output": True})
        for is_binary, body, suffix in ((True, binary, f"{length}.tensors"), (False, json_body(inputs), "json")):
            path = folder / f"{model}_{seed}.{suffix}"
            path.write_bytes(body)
            files[is_binary].append(str(path))
    return files


def load(name: str, server: Any, model: str, callers: int, seconds: float, bodies: Mapping[bool, Sequence[str]]) -> dict[str, Any]:
    """A closed loop of `callers`; requests per second, and the CPU seconds the server used for each."""
    before = cpu_seconds(server)
    path = getattr(server, "path", f"/v2/models/{model}/infer")
    run: dict[str, Any] = run_json("benchmarks.client", server.port, path, callers, seconds, *bodies[SYSTEMS[name][1]])
    total = run["requests"] * (seconds + 1.5) / seconds  # the warm-up's requests used CPU as well
    return run | {"server_cpu_s_per_request": (cpu_seconds(server) - before) / max(total, 1)}


def over(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """One rate over another, round by round, since the machine drifts."""
    return summary([one / max(other, 1e-9) for one, other in zip(ours, theirs, strict=True)])


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    machine = result["machine"]
    lines = [
        f"Measured {result['measured_at'][:10]} on {machine['cpus']} CPUs ({machine['cpu']}), fp32, one row a request; {result['rounds']} "
        f"rounds of {result['seconds_each']:g} s in turns, medians (lowest to highest); the client shares the CPUs.",
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
