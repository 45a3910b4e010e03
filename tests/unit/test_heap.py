"""What was freed leaves the process: of a model only what serving it needs stays in memory."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim: not glibc")

CHANNELS = 512
LAYERS = 4
OPEN = """
import sys
from pathlib import Path
from ortserve.local_engine import host_memory_bytes
from ortserve.execution import Execution
from ortserve.session import Session

before = host_memory_bytes()
session = Session.open(Path(sys.argv[1]), Execution(provider="CPUExecutionProvider"))
print(host_memory_bytes() - before)
"""


def convolutions(path: Path) -> int:
    """A model of a few large convolutions, whose weights ONNX Runtime lays out anew; answers its size in bytes."""
    nodes = [helper.make_node("Conv", [f"x{index}", f"w{index}"], [f"x{index + 1}"]) for index in range(LAYERS)]
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.random((CHANNELS, CHANNELS, 3, 3), np.float32), f"w{index}")  # 9 MB each
        for index in range(LAYERS)
    ]
    shape = ["batch", CHANNELS, 16, 16]
    given, answered = (helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x0", shape), (f"x{LAYERS}", None)))
    graph = helper.make_graph(nodes, "net", [given], [answered], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path.stat().st_size


def test_an_open_session_holds_its_weights_once(tmp_path: Path) -> None:
    size = convolutions(tmp_path / "model.onnx")
    said = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path / "model.onnx")], check=True, capture_output=True, text=True)
    assert int(said.stdout) < 2 * size  # 1.2 with what the session itself needs; 3.4 with what reading it took
