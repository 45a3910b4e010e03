"""The machine a result was measured on, whether it was idle, and what every result begins with."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
import psutil

from benchmarks.places import console
from ortserve.cpus import available_cpus


def heading(model: str, rounds: int, seconds: float, idle: float) -> dict[str, Any]:
    """What every result begins with: when, on what machine, of which model, for how long."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"busy_before_ratio": idle},
        "model": model,
        "rounds": rounds,
        "seconds_each": seconds,
    }


def headline(result: dict[str, Any], more: str = "") -> str:
    """The same as the first line of a table."""
    return (
        f"Measured {result['measured_at'][:10]} on {result['machine']['cpus']} CPUs ({result['machine']['cpu']}), {result['model']}, "
        f"medians of {result['rounds']} rounds of {result['seconds_each']:g} s in turns{more}"
    )


def machine() -> dict[str, Any]:
    """What it was measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    return {"cpu": model, "cpus": available_cpus(), "python": sys.version.split()[0], "onnxruntime": onnxruntime.__version__}


def wait_until_idle(limit: float = 0.1, patience_s: float = 60.0) -> float:
    """The share of the CPUs in use just before measuring, 0 to 1; waits up to a minute for it to fall below a tenth."""
    deadline = time.monotonic() + patience_s
    while (busy := psutil.cpu_percent(interval=2) / 100) > limit and time.monotonic() < deadline:
        console.print(f"the machine is {busy:.0%} busy, waiting")
    if busy > limit:
        console.print(f"[red]measuring on a machine that is {busy:.0%} busy: these figures say little[/red]")
    return busy


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
