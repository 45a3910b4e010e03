"""docs/PROTOCOL.md is true: its examples run against a service and are answered."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT, Server

pytestmark = pytest.mark.e2e

PAGE = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_every_example_runs(digits: Server, tmp_path: Path) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    said = []
    for language, block in BLOCKS:
        command = ["bash", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
        command[-1] = command[-1].replace("localhost:3000", f"localhost:{digits.port}")
        result = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == 0, result.stderr
        assert '"error"' not in result.stdout
        said.append(result.stdout)
    curl, python = said
    assert '"platform":"onnxruntime_onnx"' in curl
    assert '"model_name":"digits"' in curl
    assert '"inference_stats"' in curl
    assert "(2, 10)" in python
    assert python.count("b'") == 2


def test_every_path_of_it_is_described(digits: Server) -> None:
    import httpx

    described = set(httpx.get(f"{digits.base_url}/docs.json").json()["paths"])
    named = set(re.findall(r"`(?:GET |POST )?(/v2[a-z0-9{}/]*)`?", PAGE.split("## What is spoken")[1].split("Each `")[0]))
    assert named
    assert named <= described
