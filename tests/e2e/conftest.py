"""One service on `digits` for all end-to-end tests that only ask it; whoever needs another way of running starts a `Server` of its own."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import reference
from tests.serving import ROOT, Server, bentoml_environment


@pytest.fixture(scope="session")
def digits(digits_home: Path) -> Iterator[Server]:
    """A ready service on the default profile."""
    with Server(digits_home) as server:
        yield server


@pytest.fixture(scope="session")
def faces_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME whose store holds `faces`, built from the command line as examples/faces says. For reading: tests share it."""
    home = tmp_path_factory.mktemp("faces_home")
    file = home / "faces.onnx"
    python = {**bentoml_environment(home), "PYTHONPATH": str(reference.FOLDER)}
    subprocess.run([sys.executable, "examples/faces/make_onnx.py", str(file)], cwd=ROOT, env=python, check=True, timeout=120)
    command = [sys.executable, "build_model.py", str(file), "--task", "object-detection", "--labels", "examples/faces/labels.txt"]
    subprocess.run(
        [*command, "--max-batch", "8"], cwd=ROOT, env=bentoml_environment(home), check=True, timeout=240, stdout=subprocess.DEVNULL
    )
    return home


@pytest.fixture
def client(digits: Server) -> Iterator[httpx.Client]:
    """A client of that service."""
    with httpx.Client(base_url=digits.base_url, timeout=60) as client:
        yield client


@pytest.fixture
def left_to_the_garbage_collector() -> Iterator[None]:
    """BentoML 1.4.39's clients leave their folder behind for it: let that happen where its warning is ignored."""
    yield
    gc.collect()
