"""The OpenVINO provider, in an environment of its own: the digits package under the edge profile, compared with ONNX Runtime's CPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ortserve.execution import Execution
from ortserve.profile_file import load
from ortserve.session import Session
from tests.serving import ROOT

PYTHON = Path(os.environ.get("ORTSERVE_TEST_OPENVINO", ROOT / ".venv/openvino/bin/python"))
PRECISIONS = ("fp32", "int8")
# Max-abs of probabilities. fp32: two libraries' order of summation. int8: OpenVINO rounds between its fused nodes where ONNX Runtime's
# CPU kernels requantise, and a step of digits' logits moves a probability by about a hundredth.
TOLERANCE = {"fp32": 1e-5, "int8": 2e-2}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64", reason="onnxruntime-openvino has wheels for Linux on x86_64 only"
    ),
]

# Runs in the OpenVINO environment: prints what the session says of itself, and its answers.
CODE = """
import json, sys
from pathlib import Path
import numpy as np
from ortserve.profile_file import load
from ortserve.session import Session
session = Session.open(Path(sys.argv[1]), load("edge").execution[0], outputs=["probabilities"])
answers = session.run({"pixels": np.load(sys.argv[2])})["probabilities"]
print(json.dumps({"provider": session.provider, "nodes": session.nodes_by_provider(), "answers": answers.tolist()}))
"""


def test_the_environment_is_there() -> None:
    assert PYTHON.exists(), "make test makes it (requirements/openvino.txt)"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_openvino_runs_the_graph_and_answers_as_the_cpu_does(precision: str, digits_home: Path, tmp_path: Path) -> None:
    assert load("edge").execution[0].provider == "OpenVINOExecutionProvider"
    model = digits_home / "models" / "digits"
    model = model / (model / "latest").read_text().strip() / f"{precision}.onnx"
    reference = Session.open(model, Execution(provider="CPUExecutionProvider"), outputs=["probabilities"])
    shape = (7, *(int(size) for size in reference.inputs[0].shape[1:]))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    result = subprocess.run(
        [PYTHON, "-c", CODE, str(model), str(tmp_path / "pixels.npy")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert said["provider"] == "OpenVINOExecutionProvider"
    assert set(said["nodes"]) == {"OpenVINOExecutionProvider"}  # no node was left to the CPU's own kernels
    expected = reference.run({"pixels": pixels})["probabilities"]
    np.testing.assert_allclose(np.array(said["answers"]), expected, atol=TOLERANCE[precision], rtol=0)
