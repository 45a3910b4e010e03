"""The embedding servers that are measured beside this one: their environments, made from pinned requirements, and their processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.environments import environment
from benchmarks.models import HOME
from benchmarks.places import ENVIRONMENTS, PEERS, WORK
from benchmarks.process import PORT, Served
from tests.serving import ROOT
from tests.texts import minilm

FOLDER = PEERS / "embedders"
PATHS = {"infinity": "/embeddings"}  # where they take texts, if not at /embed
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}


def programs(name: str) -> Path:
    """The folder of programs of an environment with `peers/embedders/NAME.txt` in it, made where it is not there yet."""
    return environment(name, FOLDER / f"{name}.txt")


def unpooled() -> Path:
    """A directory with the model's files and its graph without pooling, for fastembed."""
    folder = WORK / "unpooled"
    graph = folder / "onnx" / "model.onnx"
    if not graph.exists():
        shutil.copytree(minilm(), folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
        graph.parent.mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, str(FOLDER / "export_hidden.py"), str(minilm()), str(graph)],
            env={**os.environ, **OFFLINE},
            check=True,
            capture_output=True,
        )
    return folder


def infinity() -> Served:
    """infinity-emb with its torch engine. (Its ONNX engine, in 0.0.78, does not find a graph in a local directory.)"""
    command = [
        str(programs("infinity") / "infinity_emb"), "v2", "--model-id", str(minilm()), "--served-model-name", "minilm",
        "--engine", "torch", "--device", "cpu", "--no-model-warmup", "--host", "127.0.0.1", "--port", PORT, "--log-level", "error",
    ]  # fmt: skip
    return _served(command, "/health")


def sentence_transformers() -> Served:
    """sentence-transformers behind FastAPI."""
    command = [*_uvicorn("sentence_transformers"), "sentence_transformers_app:app"]
    return _served(command, "/docs", {"MODEL": str(minilm())})


def fastembed() -> Served:
    """fastembed behind FastAPI."""
    return _served([*_uvicorn("fastembed"), "fastembed_app:app"], "/docs", {"MODEL": str(unpooled())})


def _served(command: list[str], ready: str, env: dict[str, str] | None = None) -> Served:
    return Served(command, ready=ready, home=HOME, env=OFFLINE | (env or {}), cwd=FOLDER)


def _uvicorn(name: str) -> list[str]:
    return [str(programs(name) / "uvicorn"), "--host", "127.0.0.1", "--port", PORT, "--no-access-log", "--log-level", "error"]


if __name__ == "__main__":
    for name in sorted(path.stem for path in FOLDER.glob("*.txt")):
        programs(name)
    print(f"ready, under {ENVIRONMENTS.relative_to(ROOT)}")
