"""The servers that the GPU bench compares, and the load on them. Needs psutil, numpy and Pillow, which the service has too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu_place import MODEL, ROOT, WORK, environment
from ortserve.tune.ports import free_port


@contextmanager
def our_server(profile: str) -> Iterator[int]:
    """`bentoml serve` on that profile, ready; its port."""
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--host", "127.0.0.1", "--port", str(port)]
    with started(command, port, environment(ORTSERVE_PROFILE=profile, ORTSERVE_MODEL=MODEL)):
        yield port


@contextmanager
def torch_server(*options: str) -> Iterator[int]:
    """PyTorch native, ready; its port."""
    port = free_port()
    with started([sys.executable, "-m", "benchmarks.peers.torch_gpu", str(port), *options], port, environment()):
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


def load(port: int, level: int, pictures: Sequence[str], *, clients: int, seconds: float) -> dict[str, Any]:
    """A closed loop of `level` callers, shared among the client's processes: rates add up, of latencies the worst process counts."""
    count = min(clients, level)
    shares = [level // count + (index < level % count) for index in range(count)]
    return together([client(port, share, seconds, pictures) for share in shares])


def open_loop(port: int, rate: float, pictures: Sequence[str], *, clients: int, seconds: float) -> dict[str, Any]:
    """Requests at that rate whatever becomes of them; the reason where the client cannot do that."""
    each = ["--rate", f"{rate / clients:.1f}"]
    try:
        return {"rate": rate} | together([client(port, 128, seconds, pictures, each) for _ in range(clients)])
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
