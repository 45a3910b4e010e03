"""build_model.py from the command line: a research checkpoint, torchvision, a failing build, and every exit status."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ortserve.execution import Execution
from ortserve.manifest import Manifest
from ortserve.session import Session

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def build(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "TORCH_HOME": str(home / "torch")}
    command = [sys.executable, "build_model.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def package(home: Path, name: str) -> Path:
    folder = home / "models" / name
    return folder / (folder / "latest").read_text()


@pytest.fixture(scope="module")
def research(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What examples/research/train.py writes: a DataParallel checkpoint, labels, 240 pictures."""
    folder = tmp_path_factory.mktemp("research")
    command = [sys.executable, str(EXAMPLES / "research" / "train.py"), str(folder)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""}, check=True, capture_output=True, timeout=120)
    return folder


def test_research_checkpoint_is_packaged_with_one_command_and_answers_as_pytorch(tmp_path: Path, research: Path) -> None:
    done = build(
        tmp_path, "examples/research/net.py:build", "--weights", str(research / "checkpoint.pth"), "--labels", str(research / "labels.txt"),
        "--input-size", "32", "--precision", "fp32,fp16,int8", "--calibration", str(research / "pictures"), "--name", "colours",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folder = package(tmp_path, "colours")
    manifest = Manifest.read(folder)
    assert manifest.labels == ("red", "green", "blue", "yellow", "purple", "grey")
    assert (manifest.source.reference, manifest.source.weights) == ("net.py:build", "checkpoint.pth")
    agreements = {name: variant.parity.agreement.value for name, variant in manifest.variants.items()}
    assert set(agreements) == {"fp32", "fp16", "int8"}
    assert all(value is not None and value >= 0.98 for value in agreements.values())
    # PyTorch's own answer, made here from the checkpoint's numbers, independent of the project's code
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from net import build; m = build().eval()\n"
        "state = torch.load(sys.argv[2], weights_only=True)['state_dict']\n"
        "m.load_state_dict({k.removeprefix('module.'): v for k, v in state.items()})\n"
        "torch.save(m(torch.load(sys.argv[3], weights_only=True)).softmax(1).detach(), sys.argv[3])\n"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    exchange = tmp_path / "x.pt"
    torch.save(((torch.from_numpy(pixels) / 255 - mean) / std).permute(0, 3, 1, 2), exchange)
    script = [sys.executable, "-c", code, str(EXAMPLES / "research"), str(research / "checkpoint.pth"), str(exchange)]
    subprocess.run(script, check=True, timeout=120)
    session = Session.open(manifest.verified_path(folder, "fp32"), Execution(provider="CPUExecutionProvider"))
    want = torch.load(exchange, weights_only=True).numpy()
    np.testing.assert_allclose(session.run({"pixels": pixels})["probabilities"], want, atol=1e-4)


def test_failing_example_fails_as_its_committed_output_says(tmp_path: Path) -> None:
    done = build(tmp_path, "examples/failing_build/net.py:build", "--input-size", "32", "--weights", "random", "--seed", "0")
    assert done.returncode == 1
    assert list((tmp_path / "models").iterdir()) == []
    committed = (EXAMPLES / "failing_build" / "output.txt").read_text(encoding="utf-8")
    assert shape_of(done.stdout + done.stderr) == shape_of(committed)


def shape_of(output: str) -> list[str]:
    """The lines of a build's output without numbers, table rules and runs of blanks; progress lines depend on the machine's speed."""
    lines = [re.sub(r"[-+]?\d[\d.e+-]*", "#", line) for line in output.splitlines() if not re.search(r"\d of \d", line)]
    return [re.sub(r"[ ━─]+", " ", line).strip() for line in lines]


def test_resnet50_with_random_weights_passes_and_says_what_it_could_not_measure(tmp_path: Path) -> None:
    done = build(tmp_path, "resnet50", "--weights", "random", "--seed", "0", "--max-batch", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not measurable" in done.stdout
    manifest = Manifest.read(package(tmp_path, "resnet50"))
    report = manifest.variants["fp32"].parity
    assert report.passed
    assert report.agreement.value is None
    assert {check.batch for check in report.checks} == {1, 2, 7, 8}
    assert max(check.outputs["logits"].max_abs for check in report.checks) <= 1e-4
    assert (manifest.labels[0], len(manifest.labels)) == ("tench", 1000)
    assert manifest.source.weights == "random (seed 0)"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--input-size", "big", "digits"), 2, "224 or 240x320"),
        (("--precision", "bf16", "digits"), 2, "fp32, fp16, int8"),
        (("--mean", "0.5", "digits"), 2, "mean"),
        ((), 2, "SOURCE"),
        (("resnt50",), 1, "did you mean resnet50"),
        (("digits", "--weights", "w.pth"), 1, "digits trains its own model"),
        (
            ("resnet18", "--weights", "random", "--precision", "fp32,int8"),
            1,
            "int8 must have its top-1 agreement measured, and that cannot be (no pictures were given)",
        ),
    ],
)
def test_mistakes_end_in_one_line_with_their_status(tmp_path: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    done = build(tmp_path, *arguments)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "models").exists() or list((tmp_path / "models").iterdir()) == []


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    done = build(tmp_path, "resnt50", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
