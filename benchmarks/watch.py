"""The alert's way to a webhook and back, in seconds, and a picture of the dashboard under load: `make watch`, some four minutes.

Everything is real and on the shipped intervals: `bentoml serve`, Prometheus, Alertmanager. Writes `deploy/results/watch.json`,
`deploy/results/watch.md` and `docs/dashboard.png`, which `benchmarks/panels.py` draws from Prometheus' own answers.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import typer

from benchmarks import panels
from tests.packages import add_package
from tests.serving import ROOT, Server, until
from tests.watching import Prometheus, Webhook, run_tool, watching, webhook

RESULTS = ROOT / "deploy" / "results"
PICTURE = ROOT / "docs" / "dashboard.png"
ALERT = "OrtserveDown"
PHASES = ((2, 35), (8, 40), (24, 45), (4, 30))  # callers and seconds: calm, busy, too many, calm again
SIZES = (64, 400, 900)  # pixels of a side: small ones wait for the model, large ones for the decoder


def main() -> None:
    """Measure, draw and write."""
    with tempfile.TemporaryDirectory() as folder, webhook() as hook:
        result = measure(Path(folder), hook)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "watch.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "watch.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def measure(folder: Path, hook: Webhook) -> dict[str, Any]:
    """The whole run: load, picture, kill, alert, restart, all clear."""
    home = folder / "home"
    add_package(home, "colours:1", seconds_per_row=0.02)
    profile = folder / "small.yaml"
    profile.write_text(PROFILE, encoding="utf-8")
    environment = {"ORTSERVE_PROFILE": str(profile), "ORTSERVE_MODEL": "colours"}
    with ExitStack() as running:
        first = running.enter_context(Server(home, env=environment))
        target = f"127.0.0.1:{first.port}"
        prometheus = running.enter_context(watching(folder / "watch", [target], hook))
        until(lambda: prometheus.value("up") == 1)
        begun = time.time()
        statuses = load(first.base_url)
        panels.draw(prometheus, begun, time.time(), PICTURE)
        return {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "prometheus": _version("prometheus"),
            "alertmanager": _version("alertmanager"),
            "load": {"phases_callers_seconds": PHASES, "statuses": statuses},
            "trip": trip(first, home, environment, prometheus, hook, running),
        }


def load(base_url: str) -> dict[str, int]:
    """How many answers of each status the phases brought."""
    bodies = [panels.noise(size) for size in SIZES]
    counted: dict[str, int] = {}

    def caller(number: int, until_s: float) -> list[int]:
        statuses = []
        with httpx.Client(base_url=base_url, timeout=60) as client:
            while time.monotonic() < until_s:
                answer = client.post("/classify", content=bodies[number % len(bodies)], headers={"content-type": "image/jpeg"})
                statuses.append(answer.status_code)
                number += 1
                if "retry-after" in answer.headers:
                    time.sleep(0.25)  # less than asked: a caller that does not listen, as there are
        return statuses

    for callers, seconds in PHASES:
        print(f"{callers} callers for {seconds} s", file=sys.stderr, flush=True)
        stop = time.monotonic() + seconds
        with ThreadPoolExecutor(callers) as pool:
            for statuses in pool.map(caller, range(callers), [stop] * callers):
                for status in statuses:
                    counted[str(status)] = counted.get(str(status), 0) + 1
    return counted


def trip(
    first: Server, home: Path, environment: dict[str, str], prometheus: Prometheus, hook: Webhook, running: ExitStack
) -> dict[str, float | str]:
    """Seconds from a SIGKILL to the webhook, and from the restart's beginning back to the all clear."""
    killed = time.monotonic()
    for process in first.processes():
        process.kill()
    until(lambda: prometheus.alert_state(ALERT) == "pending")
    noticed = time.monotonic()
    until(lambda: hook.got(ALERT, "firing"))
    restarted = time.monotonic()
    second = Server(home, env=environment, port=first.port)
    running.enter_context(second)
    ready = time.monotonic()
    until(lambda: hook.got(ALERT, "resolved"))
    firing, resolved = hook.first(ALERT, "firing"), hook.first(ALERT, "resolved")
    assert firing is not None
    assert resolved is not None
    return {
        "alert": ALERT,
        "killed_to_noticed_s": round(noticed - killed, 1),
        "killed_to_webhook_s": round(firing.at - killed, 1),
        "restart_to_ready_s": round(ready - restarted, 1),
        "restart_to_all_clear_s": round(resolved.at - restarted, 1),
        "ready_to_all_clear_s": round(resolved.at - ready, 1),
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    one, answers = result["trip"], result["load"]["statuses"]
    listed = ", ".join(f"{count} times {status}" for status, count in sorted(answers.items()))
    lines = [
        f"Measured {result['measured_at'][:10]} with the shipped intervals, Prometheus {result['prometheus']}, Alertmanager "
        f"{result['alertmanager']}. The load before it was answered {listed}.",
        "",
        f"| `{one['alert']}` | seconds |",
        "|---|---|",
        f"| SIGKILL to the first scrape that fails | {one['killed_to_noticed_s']} |",
        f"| SIGKILL to the webhook, firing; 30 of them are the alert's `for` | {one['killed_to_webhook_s']} |",
        f"| restart to `/readyz` | {one['restart_to_ready_s']} |",
        f"| restart to the webhook, resolved | {one['restart_to_all_clear_s']} |",
    ]
    return "\n".join(lines) + "\n"


def _version(program: str) -> str:
    return run_tool(program, "--version").split("version ")[1].split("(")[0].strip(" ,")


PROFILE = """\
description: A small queue before a slow model, so that two minutes of load show every panel.
execution:
  - provider: CPUExecutionProvider
    session: {intra_op_num_threads: 1}
    batching: {max_batch_size: 4, max_in_flight: 1, max_queue_size: 16}
objectives: {p99_ms: 400}
"""

if __name__ == "__main__":
    typer.run(main)
