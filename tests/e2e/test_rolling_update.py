"""One version after another behind a real HAProxy, under load, the old one ended by SIGTERM: no request fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.rehearsal import report, rolling_update
from tests.packages import write_profile

pytestmark = pytest.mark.e2e


def test_no_request_fails_while_versions_change_under_load(bentoml_home: Path, tmp_path: Path) -> None:
    profile = write_profile(tmp_path / "mine.yaml", stopping={"drain_delay_ms": rolling_update.DRAIN_DELAY_MS})
    found = rolling_update.rehearse(bentoml_home, profile, updates=2, callers=8, seconds=1.0)
    assert found["failures"] == {}
    assert [drain["exit_status"] for drain in found["drains"]] == [0, 0]
    assert all(drain["in_flight_at_sigterm"] > 0 for drain in found["drains"])  # it was under load
    assert found["answered_by_version"].keys() == {"1", "2", "3"}
    assert sum(found["answered_by_version"].values()) == found["requests"]


def test_the_committed_rehearsal_lost_nothing_and_is_the_table_that_is_shown() -> None:
    result = json.loads((report.RESULTS / "rolling.json").read_text(encoding="utf-8"))
    assert (result["failed"], result["failures"]) == (0, {})
    assert (report.RESULTS / "rolling.md").read_text(encoding="utf-8") == rolling_update.table(result)
