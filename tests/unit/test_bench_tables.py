"""Tables of the quick bench, the techniques and the operators, and that every measurement finds what it is made of."""

from __future__ import annotations

import importlib
from pathlib import Path

import onnx
import onnx.parser
import pytest

from benchmarks import bench, operators, techniques
from benchmarks import quick as quick_tables
from benchmarks.figures import Figures
from ortserve import profile_file
from tests.bench_points import closed, point


def test_the_quick_tables_show_each_system_beside_the_bare_runs() -> None:
    bare = {"threads": 2, "callers": 1, "batch": 1, "spinning": False, "decoding": False, "rows_per_s": 20.0, "p50_ms": 50.0}
    more = {"p50_ms": 10.0, "p99_ms": 20.0, "server_cpu_s_per_request": 0.003}
    points = [point("0/resnet50/bare/bare", "fp32", setups=[bare])]
    for case in ("resnet50", "near_empty"):
        points += [closed(0, name, rate, case=case, **more) for name, rate in (("default", 19.0), ("batchable", 10.0))]
    for turn, ready_s in ((0, 9.0), (1, 4.0), (2, 5.0)):
        points += [
            point(f"{turn}/digits/{name}/{part}", "start", ready_s=ready_s, pss_mib=150.0)
            for name, part in (("default", "memory"), ("empty", "memory/empty"))
        ]
    result = {"measured_at": "2026-01-01", "machine": {"cpus": 2, "cpu": "x"}, "model": "m", "rounds": 1, "seconds_each": 1.0}
    figures = Figures(points)
    assert (
        "| 8 | this service, default profile | 19.0 (19.0 to 19.0) | 0.95 (0.95 to 0.95) | 10 | 20 | 3.00 | 0 |"
        in quick_tables.resnet50_table(result, figures)
    )
    assert "| 8 | BentoML `batchable=True`, same graph | 10 (10 to 10) | 10.0 | 20.0 | 3.00 | 0 |" in quick_tables.overhead_table(
        result, figures
    )
    assert "| this service, `digits` | 4.5 | 150 |" in quick_tables.start_table(figures)  # the first start does not count


@pytest.mark.parametrize("technique", techniques.TECHNIQUES, ids=lambda technique: technique.name)
def test_what_a_technique_takes_away_is_a_profile(technique: techniques.Technique, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(techniques, "WORK", tmp_path)
    without = profile_file.load(str(techniques.changed(technique)))
    changes = without != profile_file.load(technique.profile).model_copy(update={"name": without.name})
    assert changes or technique.env or not technique.compiled
    assert without.execution[-1].provider == "CPUExecutionProvider"


def test_the_time_of_a_run_is_told_by_operator(tmp_path: Path) -> None:
    net = """<ir_version: 10, opset_import: ["" : 18]> net (uint8[batch,4,4,3] pixels) => (float[batch,4,4,3] probabilities) {
        f = Cast <to = 1> (pixels)
        e = Exp (f)
        g = Exp (e)
        probabilities = Softmax <axis = 1> (g)
    }"""
    onnx.save(onnx.parser.parse_model(net), tmp_path / "net.onnx")
    found = operators.operators_ms(tmp_path / "net.onnx")
    assert {kind: one["nodes"] for kind, one in found.items()} == {"Cast": 1, "Exp": 2, "Softmax": 1}
    assert all(one["ms"] > 0 for one in found.values())


def test_the_table_of_operators_says_where_a_precision_has_none() -> None:
    conv, small = {"nodes": 2.0, "ms": 9.996}, {"nodes": 1.0, "ms": 0.004}
    result = {
        "measured_at": "2026-01-01",
        "machine": {"cpus": 2, "cpu": "x"},
        "model": "m",
        "rounds": 1,
        "seconds_each": 1.0,
        "int8_over_fp32": [{"setup": operators.setups()[0], "median": 3.0, "min": 2.0, "max": 4.0}],
        "operators_ms": {"fp32": {"Conv": conv, "Softmax": small}, "int8": {"QLinearConv": {"nodes": 2.0, "ms": 3.0}}},
    }
    shown = operators.table(result)
    assert "| `Conv` | 10.00 (2) | - |" in shown
    assert "| `QLinearConv` | - | 3.00 (2) |" in shown
    assert "| all others | 0.00 | 0.00 |" in shown
    assert "| together | 10.0 | 3.0 |" in shown


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(bench.__file__).parent.glob("*.py")))
def test_every_measurement_finds_what_it_is_made_of(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}" if name != "__init__" else "benchmarks")
