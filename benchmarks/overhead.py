"""What serving costs around a model that costs nothing: `digits` behind this service and behind BentoML's own batching, in turns.

Part of `make bench-quick`; writes `benchmarks/results/overhead.json` and `overhead.md`. The client shares the CPUs with the servers: the
CPU seconds a server used for each request do not depend on that, requests per second do.
"""

from __future__ import annotations

import json
from typing import Any

import typer

from benchmarks.quick import (
    CONCURRENCIES,
    RESULTS,
    built_model,
    console,
    heading,
    http_summary,
    load,
    ours_and_batchable,
    picture_files,
    wait_until_idle,
)

NAMES = {"ours": "this service, default profile", "batchable": "BentoML `batchable=True`, same session"}


def main(rounds: int = 3, seconds: float = 4.0) -> None:
    """Measure and write. SECONDS is the time of each measurement."""
    home, _ = built_model("resnet50")
    pictures = picture_files()
    idle = wait_until_idle()
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {name: {level: [] for level in CONCURRENCIES} for name in NAMES}
    with ours_and_batchable(home, "digits") as servers:
        for turn in range(rounds):
            for name, server in servers.items():
                for level in CONCURRENCIES:
                    console.print(f"round {turn + 1} of {rounds}: {name}, {level} callers")
                    runs[name][level].append(load(server, level, seconds, pictures))
    result = {
        **heading("digits, fp32, from a 500 x 375 JPEG of about 50 KB", rounds, seconds, idle),
        "http": {name: {str(level): http_summary(of_level) for level, of_level in levels.items()} for name, levels in runs.items()},
    }
    (RESULTS / "overhead.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "overhead.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"Measured {result['measured_at'][:10]} on {result['machine']['cpus']} CPUs ({result['machine']['cpu']}), {result['model']}, "
        f"medians of {result['rounds']} rounds of {result['seconds_each']:g} s in turns; the client shares the CPUs.",
        "",
        "| callers | system | requests/s (min to max) | p50 ms | p99 ms | CPU ms/request | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for level in CONCURRENCIES:
        for name, shown in NAMES.items():
            one = result["http"][name][str(level)]
            rate = one["requests_per_s"]
            p50, p99, cpu = (one[key]["median"] for key in ("p50_ms", "p99_ms", "server_cpu_s_per_request"))
            lines.append(
                f"| {level} | {shown} | {rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f}) "
                f"| {p50:.1f} | {p99:.1f} | {cpu * 1000:.2f} | {one['failed']} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
