"""What the GPU bench leaves: `benchmarks/results/gpu.json` and `gpu.md`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_place import RESULTS


def earlier(now: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that were measured before on this device with these versions: a run may be given in several commands."""
    try:
        before: dict[str, Any] = json.loads((RESULTS / "gpu.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = all(before.get(key) == now[key] for key in ("devices", "cpus", "versions", "model"))
    return {key: before[key] for key in ("tests", "bare", "http") if key in before} if same else {}


def write(result: Mapping[str, Any]) -> None:
    """`gpu.json` and `gpu.md`; into $OUT too where that is set, for a machine whose files are fetched from there."""
    for folder in (RESULTS, *([Path(os.environ["OUT"])] if os.environ.get("OUT") else [])):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (folder / "gpu.md").write_text(table(result), encoding="utf-8")


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"Measured {result['measured_at'][:10]} on {', '.join(result['devices'])} with {result['cpus']} CPUs; {result['model']}.", ""]
    if "tests" in result:
        lines += [f"Tests marked `gpu`: {result['tests']['said']}", ""]
    for precision, setups in result.get("bare", {}).items():
        lines += [
            f"Bare session, {precision}:",
            "",
            "| batch | lanes | binding | graph | algo | NHWC | rows/s | p50 ms |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for one in setups:
            figures = f"{one['rows_per_s']:.0f} | {one['p50_ms']:.2f}" if "rows_per_s" in one else f"{one['error'][:80]} | "
            varied = (one[key] for key in ("batch", "lanes", "binding", "graphs", "algo", "nhwc"))
            lines.append(f"| {' | '.join(map(str, varied))} | {figures} |")
        lines.append("")
    if "http" in result:
        lines += [
            "| system (ours in fp16) | callers | requests/s | p50 ms | p99 ms | p99 ms at 80 % | GPU memory, MiB |",
            "|---|---|---|---|---|---|---|",
        ]
    for name, one in result.get("http", {}).items():
        if "error" in one:
            lines.append(f"| {name} | | {' '.join(one['error'].split())[:120]} | | | | |")
            continue
        late = one["at_80_percent"].get("p99_ms")
        held = one["gpu_memory_bytes"]
        for level, run_ in one["loads"].items():
            lines.append(
                f"| {name} | {level} | {run_['requests_per_s']:.0f} | {run_['p50_ms']:.1f} | {run_['p99_ms']:.1f} "
                f"| {'' if late is None else f'{late:.1f}'} | {'' if held is None else f'{held / 2**20:.0f}'} |"
            )
    return "\n".join(lines) + "\n"
