"""The smallest bench, end to end: a real service, the C client, closed and open loop, the tables written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT

pytestmark = pytest.mark.e2e


def test_the_smallest_bench_measures_this_service(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.bench", "smallest", "--seconds", "0.5", "--system", "default", "--results", str(tmp_path)]
    environment = {**os.environ, "BENCHMARK_WORK": str(tmp_path / "work")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "bench_smallest.json").read_text(encoding="utf-8"))
    points = {(point["session"], point["load"]): point for point in found["points"]}
    for load in ("closed 1", "closed 8"):
        point = points["0/near_empty/default/closed", load]
        assert point["requests"] > 0
        assert point["failed"] == 0
        assert point["errors"] == {}
        assert point["server_cpu_s_per_request"] > 0
        assert set(point["stages_ms"]) == {"decode", "queue", "inference"}
    half = points["0/near_empty/default/open", "open 50"]
    assert half["rate"] == pytest.approx(points["0/near_empty/default/open", "closed 32"]["requests_per_s"] / 2, rel=1e-3)
    assert half["unanswered"] == 0
    assert points["0/near_empty/default/closed", "start"]["wrong"] is None  # the class that PyTorch names
    text = (tmp_path / "bench_smallest.md").read_text(encoding="utf-8")
    assert "this service, default profile" in text
    assert (tmp_path / "bench_smallest_throughput.png").stat().st_size > 0
    assert not list((tmp_path / "work").glob("smallest.jsonl"))  # finished: nothing to go on with
