"""What a rehearsal leaves: its figures as JSON, and a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tests.serving import ROOT

RESULTS = ROOT / "deploy" / "results"


def measured(found: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, with when and on what it was measured before it."""
    from benchmarks.machine import machine

    return {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), **found}


def write(name: str, result: Mapping[str, Any], table: str) -> None:
    """Write both, and show the table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)


def markdown(result: Mapping[str, Any], how: str, title: str, rows: Mapping[str, object]) -> str:
    """A table of two columns under a line that says when, on what and how."""
    head = f"Measured {result['measured_at'][:10]} on {result['machine']['cpus']} CPUs ({result['machine']['cpu']}): {how}."
    return "\n".join([head, "", f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"
