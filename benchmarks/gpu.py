"""`make gpu`: what one GPU does here, bare and through HTTP, beside PyTorch native, in one run; the tests marked `gpu` come first.

`python -m benchmarks.gpu` also runs where there is no registry and nothing was set up: with this project's serving packages, torch, and the
model packages that `python -m benchmarks.gpu --prepare FOLDER` made on another machine (see docs/GPU.md). It writes
`benchmarks/results/gpu.json` and `gpu.md`, after each part anew, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import gpu_packages, gpu_servers
from benchmarks.gpu_place import MODEL, ROOT, WORK, environment, has, package, run, say
from benchmarks.gpu_result import earlier, write

# Module: the package that has it. What this run itself and the service import; onnxruntime-gpu is asked whether it has CUDA, below.
NEEDED = {
    **{name: name for name in ("attrs", "bentoml", "numpy", "orjson", "psutil", "pydantic", "starlette", "tokenizers", "torch", "uvicorn")},
    "circus": "kantoku",
    "onnxruntime": "onnxruntime-gpu",
    "PIL": "pillow",
    "prometheus_client": "prometheus-client",
    "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
    "python_multipart": "python-multipart",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
}
TORCH = "PyTorch native"  # fp32, one picture a call, as a plain service does it
WANTED = {"uvloop": "uvloop", "httptools": "httptools", "pytest": "pytest"}  # without them it runs, slower or untested


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--prepare", metavar="FOLDER", type=Path, help="build the model packages into FOLDER, in pieces below 50 MiB, and end"
    )
    parser.add_argument("--precision", default="fp32,fp16", help="of what --prepare builds; fp16 alone makes a third of the bytes")
    parser.add_argument("--packages", metavar="FOLDER", type=Path, help="the folder that --prepare made; built here where it is not given")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement through HTTP; a third of it for bare ones")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 4), help="API processes before the runner")
    parser.add_argument("--clients", type=int, default=2, help="processes that send requests")
    parser.add_argument("--parts", default="tests,bare,http", help="some of tests,bare,http")
    options = parser.parse_args()
    if options.prepare:
        gpu_packages.prepare(options.prepare, options.precision)
        return
    complain_of_what_is_missing(options.parts)
    gpu_packages.fetch(options.packages)
    parts: dict[str, Callable[[dict[str, Any]], None]] = {
        "tests": lambda result: result.update(tests=tests()),
        "bare": lambda result: result.update(bare=bare(options.seconds / 3)),
        "http": lambda result: through_http(result, options),
    }
    result = {**earlier(heading(options)), **heading(options)}
    for part in options.parts.split(","):
        say(f"part {part}")
        try:
            parts[part](result)
        except Exception as error:
            result.setdefault("failed", {})[part] = f"{type(error).__name__}: {error}"
            say(f"part {part} failed: {error}")
        write(result)
    if result.get("failed") or result.get("tests", {}).get("status"):
        sys.exit(1)


def complain_of_what_is_missing(parts: str) -> None:
    """End with one line a package where something is missing, or where there is no GPU that both libraries can use."""
    found = {module: has(module) for module in {**NEEDED, **WANTED}}
    for module, optional in WANTED.items():
        if not found[module]:
            say(f"without {optional}: it is optional")
    faults = [f"missing: {package} (module {module})" for module, package in NEEDED.items() if not found[module]]
    if "http" in parts and shutil.which("gcc") is None:
        faults.append("missing: gcc, which compiles the load client: install it, or leave `http` out of --parts")
    if not faults:
        import onnxruntime
        import torch

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            faults.append(
                f"onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider: expected onnxruntime-gpu, without onnxruntime beside"
            )
        from ortserve import cudart

        cudart.load_wheels()
        faults += [f"missing: {library}" for library in cudart.missing_libraries()]
        if not torch.cuda.is_available():
            faults.append(f"torch {torch.__version__} finds no CUDA device: expected torch for CUDA 13 and an NVIDIA driver")
    if faults:
        sys.exit("\n".join(["error: this machine cannot run the GPU bench", *faults]))


def heading(options: argparse.Namespace) -> dict[str, Any]:
    """When, on which device, with which versions."""
    import onnxruntime
    import torch

    from ortserve import gpu

    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": [reading.name for reading in gpu.devices()] or [torch.cuda.get_device_name(0)],
        "cpus": len(os.sched_getaffinity(0)),
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__, "cuda": torch.version.cuda},
        "model": f"{MODEL}, random weights of seed 0: speed alone, not accuracy",
        "seconds_each": options.seconds,
        "workers": options.workers,
    }


def tests() -> dict[str, Any]:
    """The tests marked `gpu`, their last line, and the exit status (0 where there is no pytest: said in the text)."""
    if not has("pytest"):
        return {"status": 0, "said": "pytest is not installed: not run"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    say(done.stdout[-6000:] + done.stderr[-2000:])
    return {"status": done.returncode, "said": done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]}


def bare(seconds: float) -> dict[str, Any]:
    """Each precision's set-ups, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.gpu_bare", str(package())]
    held = [precision for precision in ("fp16", "fp32") if (package() / f"{precision}.onnx").exists()]
    said = {precision: run([*command, precision, str(seconds)], timeout_s=1200) for precision in held}
    return {precision: json.loads(text.splitlines()[-1]) for precision, text in said.items()}  # ONNX Runtime may print before it


def through_http(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Pictures through HTTP: ours in shipped profiles, with workers before a runner, with the best bare set-up, and PyTorch native."""
    pictures = gpu_servers.picture_files()
    kinds: dict[str, Callable[[], Any]] = {
        TORCH: gpu_servers.torch_server,
        f"{TORCH}, fp16, channels_last": lambda: gpu_servers.torch_server("--half"),
        "ours, default": lambda: gpu_servers.our_server("default"),
        "ours, throughput": lambda: gpu_servers.our_server("throughput"),
        f"ours, throughput, separate, {options.workers} workers": lambda: gpu_servers.our_server(
            profile_file("separate", options.workers, {})
        ),
    }
    if best := best_options(result.get("bare", {}).get("fp16", [])):
        kinds["ours, separate, best bare set-up"] = lambda: gpu_servers.our_server(profile_file("best", options.workers, best))
    how = {"clients": options.clients, "seconds": options.seconds}
    rows = result["http"] = {}
    for name, start in kinds.items():
        say(f"starting {name}")
        before = gpu_servers.memory() or 0
        try:
            with start() as port:
                levels = (1, 8, 32) if name.startswith(TORCH) else (1, 32, 128, 256)
                loads = {str(level): gpu_servers.load(port, level, pictures, **how) for level in levels}
                top = max(one["requests_per_s"] for one in loads.values())
                rows[name] = {
                    "loads": loads,
                    "at_80_percent": gpu_servers.open_loop(port, 0.8 * top, pictures, **how),
                    "gpu_memory_bytes": (gpu_servers.memory() or before) - before,
                }
        except Exception as error:
            rows[name] = {"error": f"{type(error).__name__}: {error}"}
            say(f"{name}: {error}")
        write(result)
    if wrong := [name for name, row in rows.items() if "error" in row]:
        raise RuntimeError(f"no figures of {', '.join(wrong)}: the reasons are above and in gpu.json")


def best_options(setups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The provider options of the fastest bare set-up with binding; {} where nothing was measured."""
    measured = [one for one in setups if one.get("binding") and "rows_per_s" in one]
    if not measured:
        return {}
    best = max(measured, key=lambda one: one["rows_per_s"])
    return {"cudnn_conv_algo_search": best["algo"], "prefer_nhwc": best["nhwc"]}


def profile_file(name: str, workers: int, provider_options: Mapping[str, Any]) -> str:
    """The shipped throughput profile with `placement: separate`, and those options of CUDA; as a file."""
    import yaml

    profile = yaml.safe_load((ROOT / "profiles" / "throughput.yaml").read_text(encoding="utf-8"))
    profile |= {"placement": "separate", "workers": workers}
    profile["execution"][0].setdefault("provider_options", {}).update(provider_options)
    path = WORK / f"gpu-{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(profile, sort_keys=False), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    main()
