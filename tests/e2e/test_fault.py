"""A killed worker takes no more with it than it held, the other one answers on, and `deploy/rehearsal/fault.py` counts it so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.rehearsal import fault, report
from tests.packages import write_profile

pytestmark = pytest.mark.e2e


def test_a_killed_worker_takes_with_it_only_what_it_held(bentoml_home: Path, tmp_path: Path) -> None:
    profile = write_profile(tmp_path / "mine.yaml", workers=fault.WORKERS)
    found = fault.kill_workers(bentoml_home, profile, kills=2, callers=8, seconds=1.0)
    for one in found["faults"]:
        assert one["in_flight"] > 0  # it was under load
        assert one["lost"] <= found["callers"]  # a caller whose connection broke connects anew, to the worker that lives
        assert "503" not in one["failures"]
        assert one["answered_meanwhile_per_s"] > 0


def test_the_committed_figures_are_the_table_that_is_shown() -> None:
    result = json.loads((report.RESULTS / "fault.json").read_text(encoding="utf-8"))
    assert (report.RESULTS / "fault.md").read_text(encoding="utf-8") == fault.table(result)
