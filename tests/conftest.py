"""Fixtures that every test may use, and the reason why a GPU test is skipped."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ortserve.tune import ports
from tests.devices import why_no_gpu
from tests.serving import DIGITS, Server, bentoml, build_model
from tests.texts import minilm, tiny_classifier


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none, with the reason."""
    for item in items:
        if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}"))


@pytest.fixture
def bentoml_home(tmp_path: Path) -> Path:
    """An empty folder for BENTOML_HOME."""
    home = tmp_path / "bentoml"
    home.mkdir()
    return home


def built_once(tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The folder NAME of this run, filled by `build`: once, however many processes share the tests among them."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # each process has a folder of its own in it
    folder, whole = run / name, run / f"{name}.whole"
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # another one's, that did not come to its end
            folder.mkdir()
            build(folder)
            whole.touch()
    return folder


@pytest.fixture(scope="session")
def digits_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME whose store holds `digits`, imported from the committed package. For reading: every test of the run shares it."""
    return built_once(tmp_path_factory, "digits_home", lambda home: bentoml(home, "models", "import", str(DIGITS)))


@pytest.fixture(scope="session")
def texts_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME whose store holds `minilm`, which is all-MiniLM-L6-v2 in fp32 and int8, and `mood`, a tiny random classifier.

    Both were built from the command line. For reading: every test of the run shares it.
    """

    def build(home: Path) -> None:
        tiny_classifier(home / "mood")
        build_model(home, f"hf:{minilm()}", "--name", "minilm", "--version", "1", "--precision", "fp32,int8")
        build_model(home, f"hf:{home / 'mood'}", "--version", "1", "--max-batch", "8")

    return built_once(tmp_path_factory, "texts_home", build)


@pytest.fixture
def free_port() -> int:
    """A TCP port that nothing listens on."""
    return ports.free_port()


@pytest.fixture
def serve(digits_home: Path) -> Iterator[Callable[..., Server]]:
    """`serve(home, env={...}, ...)`: a ready `Server`, by default on `digits`; all are stopped when the test ends, failed or not."""
    with ExitStack() as servers:

        def start(home: Path = digits_home, **options: Any) -> Server:
            return servers.enter_context(Server(home, **options))

        yield start
