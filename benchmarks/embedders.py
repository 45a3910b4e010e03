"""The embedding servers that are measured beside this one: their environments, made from pinned requirements, and their processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.quick import PEERS, WORK, console
from tests.serving import ROOT, free_port
from tests.texts import minilm

FOLDER = PEERS / "embedders"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}


def environment(name: str, requirements: Path = FOLDER) -> Path:
    """The folder of programs of an environment with that folder's `NAME.txt` in it, made where it is not there yet."""
    folder = WORK / "environments" / name
    stamp, wanted = folder / "requirements.txt", requirements / f"{name}.txt"
    if not stamp.exists() or stamp.read_bytes() != wanted.read_bytes():
        console.print(f"making the environment of {name}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([str(uv), "pip", "install", "--quiet", "--python", str(folder / "bin/python"), "-r", str(wanted)], check=True)
        shutil.copyfile(wanted, stamp)
    return folder / "bin"


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


class Peer:
    """A foreign server in a process of its own. As a context manager it answers inside the block and is gone after it."""

    def __init__(self, command: Sequence[str], *, ready: str, path: str, env: dict[str, str] | None = None) -> None:
        """`command` and `env` have {port} where the port goes; `ready` is a path that answers 200; `path` takes the requests."""
        self.port = free_port()
        self.path = path
        self._ready = f"http://127.0.0.1:{self.port}{ready}"
        self._command = [part.format(port=self.port) for part in command]
        self._env = {**os.environ, **OFFLINE, **{name: value.format(port=self.port) for name, value in (env or {}).items()}}

    def __enter__(self) -> Peer:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(self._command, cwd=FOLDER, env=self._env, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__(None, None, None)
                raise RuntimeError(f"{self._command[0]} did not start:\n{self._said()}")
            time.sleep(0.2)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        everyone = self.processes()
        for process in everyone:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, left = psutil.wait_procs(everyone, timeout=10)
        for process in left:
            process.kill()

    def processes(self) -> list[psutil.Process]:
        """Every living process of the server."""
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.Error:
            return []

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._ready, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]


def infinity() -> Peer:
    """infinity-emb with its torch engine. (Its ONNX engine, in 0.0.78, does not find a graph in a local directory.)"""
    command = [
        str(environment("infinity") / "infinity_emb"), "v2", "--model-id", str(minilm()), "--served-model-name", "minilm",
        "--engine", "torch", "--device", "cpu", "--no-model-warmup", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "error",
    ]  # fmt: skip
    return Peer(command, ready="/health", path="/embeddings")


def sentence_transformers() -> Peer:
    """sentence-transformers behind FastAPI."""
    command = [*_uvicorn("sentence_transformers"), "sentence_transformers_app:app"]
    return Peer(command, ready="/docs", path="/embed", env={"MODEL": str(minilm())})


def fastembed() -> Peer:
    """fastembed behind FastAPI."""
    return Peer([*_uvicorn("fastembed"), "fastembed_app:app"], ready="/docs", path="/embed", env={"MODEL": str(unpooled())})


def _uvicorn(name: str) -> list[str]:
    return [str(environment(name) / "uvicorn"), "--host", "127.0.0.1", "--port", "{port}", "--no-access-log", "--log-level", "error"]


if __name__ == "__main__":
    for name in sorted(path.stem for path in FOLDER.glob("*.txt")):
        environment(name)
    print(f"ready, under {(WORK / 'environments').relative_to(ROOT)}")
