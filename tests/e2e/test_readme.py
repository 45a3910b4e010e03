"""README is true: every command in it runs, in its order, in a copy of the checkout, and its figures are those of the committed results."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
import torchvision
from PIL import Image

from benchmarks.publish import PAGES, published
from ortserve.tune.ports import free_port
from tests.serving import ROOT, bentoml_environment

pytestmark = pytest.mark.e2e

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
# Run by .ci/run itself, of which this test is a part: here only whether make knows them.
BY_CI = ("make setup",)
# Commands that stand in tables, and the test that runs each.
ELSEWHERE = {
    "bentoml models export": "tests/integration/test_build_store.py",
    "bentoml models import": "tests/serving.py",
}


class Walk:
    """A reader who types what README says, in a copy of the checkout with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self._log = folder / "log"
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.checkout / name)
        venv = self.checkout / ".venv"  # the environment this test runs in, under the name README gives it
        venv.mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (venv / name).symlink_to(Path(sys.prefix) / name)
        for stamp in (".python", ".uv", ".serving", ".setup"):
            (venv / stamp).touch()
        path = os.pathsep.join((str(venv / "bin"), os.environ["PATH"]))
        home = folder / "bentoml"
        home.mkdir()
        self._environment = bentoml_environment(home, {"PATH": path, "PORT": str(self.port), "BENTOML_PORT": str(self.port)})

    def type(self, line: str) -> str:
        """Run one line, or start the server it starts; what it printed."""
        line = line.replace("localhost:3000", f"localhost:{self.port}")
        if line == "make serve" or "bentoml serve" in line:
            self.stop()
            with self._log.open("wb") as log:
                self._server = subprocess.Popen(
                    ["bash", "-c", f"exec env {line}"],
                    cwd=self.checkout,
                    env=self._environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._wait_ready()
            return ""
        if line in BY_CI:
            line = line.replace("make", "make --dry-run")
        result = subprocess.run(
            ["bash", "-ec", line], cwd=self.checkout, env=self._environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        return result.stdout

    def python(self, code: str) -> str:
        """Run a Python block; what it printed."""
        code = code.replace("localhost:3000", f"localhost:{self.port}")
        return self.type(f"python - <<'END'\n{code}\nEND")

    def classify(self, picture: bytes, top_k: int) -> list[dict[str, Any]]:
        """The predictions of the running server for one PNG."""
        answer = httpx.post(
            f"http://localhost:{self.port}/classify?top_k={top_k}", content=picture, headers={"content-type": "image/png"}, timeout=60
        )
        predictions: list[dict[str, Any]] = answer.raise_for_status().json()["predictions"]
        return predictions

    def get(self, path: str) -> bytes:
        """The body of a GET request to the running server."""
        with urllib.request.urlopen(f"http://localhost:{self.port}{path}", timeout=10) as answer:
            body: bytes = answer.read()
            return body

    def _wait_ready(self) -> None:
        assert self._server is not None
        for _ in range(1800):
            assert self._server.poll() is None, self._log.read_text(errors="replace")
            try:
                self.get("/readyz")
                return
            except (urllib.error.URLError, OSError):
                try:
                    self._server.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
        raise AssertionError(self._log.read_text(errors="replace"))

    def stop(self) -> None:
        """End the server that runs, workers included."""
        if self._server is None:
            return
        family = [psutil.Process(self._server.pid), *psutil.Process(self._server.pid).children(recursive=True)]
        self._server.send_signal(signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=30)
        for process in left:
            process.kill()
        self._server.wait()
        self._server = None


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    reader = Walk(tmp_path)
    try:
        yield reader
    finally:
        reader.stop()


def assert_resnet50_answers_as_torchvision(walk: Walk) -> None:
    """Every probability of a picture over HTTP is PyTorch's, after torchvision's own transform, within 1e-4."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    weights = torchvision.models.ResNet50_Weights.DEFAULT
    pixels = np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    with torch.inference_mode():
        expected = model(weights.transforms()(image)[None]).softmax(1)[0].numpy()
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    answered = np.zeros(1000, np.float32)
    for prediction in walk.classify(buffer.getvalue(), 1000):
        answered[prediction["class_id"]] = prediction["score"]
        assert prediction["label"] == weights.meta["categories"][prediction["class_id"]]
    np.testing.assert_allclose(answered, expected, atol=1e-4, rtol=0)


def assert_colours_are_right(walk: Walk) -> None:
    """The research checkpoint, packaged with one command, names the colour of its pictures over HTTP."""
    walk.type("ORTSERVE_MODEL=colours bentoml serve")
    pictures = sorted((walk.checkout / "build" / "colours" / "pictures").glob("*.png"))[::8]
    right = [walk.classify(path.read_bytes(), 1)[0]["label"] == path.name.split("_")[0] for path in pictures]
    assert len(right) == 30
    assert sum(right) >= 29


def test_every_command_runs_in_order(walk: Walk) -> None:
    said: dict[str, str] = {}
    for language, block in BLOCKS:
        if language == "python":
            said["python"] = walk.python(block)
            continue
        for line in block.splitlines():
            if line and not line.startswith("#"):
                said[line] = walk.type(line)
                if "ORTSERVE_MODEL=resnet50" in line:
                    assert_resnet50_answers_as_torchvision(walk)
                if "--name colours" in line:
                    assert_colours_are_right(walk)
                    walk.type("make serve")  # the commands below speak of digits again
    assert json.loads(said["curl -F image=@examples/seven.png localhost:3000/classify"])["predictions"][0]["label"] == "7"
    assert "'label': '7'" in said["python"]
    assert "resnet50" in said["bentoml models list"]
    assert "colours" in said["bentoml models list"]


def test_commands_in_tables_are_run_by_a_test() -> None:
    rows = re.findall(r"^\| `(bentoml [a-z ]+[a-z])[^`]*`", README, re.MULTILINE)
    in_blocks = "\n".join(block for _, block in BLOCKS)
    for command in rows:
        words = next((known for known in ELSEWHERE if command.startswith(known)), None)
        if words is None:
            assert command in in_blocks, f"{command!r} is run nowhere"
        else:
            assert words.split()[-1] in (ROOT / ELSEWHERE[words]).read_text(encoding="utf-8")


def test_the_container_is_proved_by_ci() -> None:
    """`make prove` is no part of this run: it installs a container engine. It fails where it cannot run, and CI with it."""
    assert "stage make prove" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_the_committed_results(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == published(text), "python -m benchmarks.publish writes them"


def test_every_environment_variable_is_one_the_code_reads() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "ortserve").rglob("*.py"))
    for name in set(re.findall(r"ORTSERVE_[A-Z_]+", README)):
        assert f'"{name}"' in code
