"""Where the GPU bench works, and what it starts commands with. Needs no package but Python's own: it says itself what a machine lacks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "benchmarks" / "work"
HOME = WORK / "gpu-bentoml"
MODEL = "resnet50"


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def has(module: str) -> bool:
    """Whether that module is installed."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent
        return False


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
