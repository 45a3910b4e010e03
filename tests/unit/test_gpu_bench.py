"""The GPU bench's own parts that need no GPU: packages in pieces, profiles it writes, what it says where something is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu as bench
from benchmarks import gpu_bare, gpu_packages, gpu_result, gpu_servers
from ortserve.execution import Execution
from ortserve.profile_file import load


def test_a_package_in_pieces_is_whole_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_packages, "PIECE_BYTES", 10)
    contents = {"a.bentomodel": bytes(range(25)), "b.bentomodel": b"short"}
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    (pieces / "a.bentomodel.009").write_bytes(b"of an older, longer one")
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        gpu_packages.split(tmp_path / name, pieces)
    assert all(piece.stat().st_size <= 10 for piece in pieces.iterdir())
    joined = gpu_packages.join(pieces, tmp_path / "joined")
    assert {path.name: path.read_bytes() for path in joined} == contents


def test_the_profile_of_the_bench_is_the_shipped_one_with_a_runner_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WORK", tmp_path)
    written, shipped = load(bench.profile_file("best", 12, {"prefer_nhwc": 1})), load("throughput")
    assert (written.placement, written.workers) == ("separate", 12)
    assert written.execution[0].provider_options == {**shipped.execution[0].provider_options, "prefer_nhwc": 1}
    assert (written.execution[0].batching, written.execution[1:]) == (shipped.execution[0].batching, shipped.execution[1:])


def test_the_best_set_up_is_the_fastest_that_was_measured_with_binding() -> None:
    common = {"graphs": True, "lanes": 2, "batch": 8}
    setups: list[dict[str, Any]] = [
        {**common, "binding": True, "algo": "HEURISTIC", "nhwc": 0, "rows_per_s": 10.0},
        {**common, "binding": True, "algo": "EXHAUSTIVE", "nhwc": 1, "rows_per_s": 20.0},
        {**common, "binding": False, "algo": "HEURISTIC", "nhwc": 0, "rows_per_s": 30.0},
        {**common, "binding": True, "algo": "HEURISTIC", "nhwc": 1, "error": "no"},
    ]
    assert bench.best_options(setups) == {"cudnn_conv_algo_search": "EXHAUSTIVE", "prefer_nhwc": 1}
    assert bench.best_options([]) == {}


def test_every_bare_set_up_is_an_execution_that_a_profile_may_hold() -> None:
    setups = list(gpu_bare.setups())
    assert len({json.dumps(setup, sort_keys=True) for setup in setups}) == len(setups)
    for setup in setups:
        assert isinstance(gpu_bare.execution(setup), Execution)


def test_what_is_missing_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "has", lambda module: module not in ("circus", "PIL"))
    with pytest.raises(SystemExit) as caught:
        bench.complain_of_what_is_missing("tests,bare")
    assert str(caught.value).splitlines()[1:] == ["missing: kantoku (module circus)", "missing: pillow (module PIL)"]


def test_rates_of_several_clients_add_up_and_the_worst_latency_counts() -> None:
    class Client:
        returncode = 0

        def __init__(self, rate: float, late: float, status: str) -> None:
            self.said = json.dumps({"requests_per_s": rate, "p50_ms": late / 2, "p99_ms": late, "statuses": {status: 3}})

        def communicate(self, timeout: float) -> tuple[str, str]:  # noqa: ARG002
            return self.said, ""

    seen = gpu_servers.together([Client(100, 5, "200"), Client(50, 9, "200"), Client(1, 2, "503")])  # type: ignore[list-item]
    assert seen == {"requests_per_s": 151, "p50_ms": 4.5, "p99_ms": 9, "statuses": {"200": 6, "503": 3}}


def test_a_result_that_was_cut_short_has_its_table() -> None:
    heading = {"measured_at": "2026-01-01T00:00:00", "devices": ["Fake"], "cpus": 16, "model": "resnet50"}
    bare = {"fp16": [{"batch": 1, "lanes": 1, "binding": True, "graphs": True, "algo": "HEURISTIC", "nhwc": 0, "error": "no"}]}
    loads = {"32": {"requests_per_s": 10.0, "p50_ms": 1.0, "p99_ms": 2.0}}
    http = {
        "ours": {"loads": loads, "at_80_percent": {"rate": 8.0, "error": "no open loop"}, "gpu_memory_bytes": 2**30},
        "PyTorch native": {"error": "RuntimeError: it did not\nbecome ready"},
    }
    text = gpu_result.table({**heading, "bare": bare, "http": http})
    assert "| ours | 32 | 10 | 1.0 | 2.0 |  | 1024 |" in text
    assert "| PyTorch native | | RuntimeError: it did not become ready |" in text
    assert gpu_result.table(heading).startswith("Measured 2026-01-01 on Fake with 16 CPUs")
