"""What a fault costs: kill -9 of one of two workers under load, outside a container, where BentoML replaces it; several times in a row.

`python -m deploy.rehearsal.fault` writes `deploy/results/fault.json` and, for people, `fault.md`. Callers speak to the service itself and
send every request once, so what a kill takes with it is counted whole.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import typer

from deploy.rehearsal import report
from deploy.rehearsal.callers import Callers, failures
from deploy.rehearsal.rolling_update import ROW_S, in_progress
from tests.packages import add_package, picture, write_profile
from tests.serving import Server

WORKERS = 2
_LOOK_S = 0.02  # between two looks at /readyz
_PATIENCE_S = 60.0


class NotReady(Exception):
    """The service did not come back."""


def kill_workers(home: Path, profile: str, kills: int, callers: int, seconds: float) -> dict[str, Any]:
    """So many workers killed one after another, each under the load of so many fresh callers; and what became of every request.

    SECONDS is how long they call before the kill and after the service is ready again. Raises NotReady where it is not.
    """
    add_package(home, "colours:1", seconds_per_row=ROW_S)
    faults: list[dict[str, Any]] = []
    with Server(home, env={"ORTSERVE_PROFILE": profile, "ORTSERVE_MODEL": "colours:1"}) as server:
        for number in range(kills):
            # Fresh ones, or all of them would stay with the worker that survived the kill before.
            with Callers(server.port, picture("green"), "image/png", callers) as load:
                time.sleep(seconds)
                in_flight = in_progress(server)
                at, ready_s = _kill(server, server.workers()[number % WORKERS])
                time.sleep(seconds)
            sent = load.sent()
            meanwhile = [one for one in sent if one.outcome == "200" and at <= one.ended <= at + ready_s]
            faults.append(
                {
                    "requests": len(sent),
                    "in_flight": in_flight,
                    "lost": sum(failures(sent).values()),
                    "failures": failures(sent),
                    "seconds_until_ready": ready_s,
                    "answered_meanwhile_per_s": len(meanwhile) / ready_s,
                }
            )
    return {"workers": WORKERS, "callers": callers, "kills": kills, "faults": faults}


def _kill(server: Server, worker: psutil.Process) -> tuple[float, float]:
    """SIGKILL to that worker: when (`time.monotonic()`), and how many seconds later the service was ready again."""
    at = time.monotonic()
    worker.kill()
    missed = False  # /readyz must have failed once: the first look may come before the kernel has ended the process
    while not (ready := _ready(server)) or not missed:
        missed = missed or not ready
        if time.monotonic() - at > _PATIENCE_S:
            raise NotReady(f"the service was not ready again {_PATIENCE_S:g} s after a worker was killed:\n{server.log()}")
        time.sleep(_LOOK_S)
    return at, time.monotonic() - at


def _ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.base_url}/readyz", timeout=30) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main(kills: int = 5, callers: int = 8, seconds: float = 3.0) -> None:
    """Measure and write. SECONDS is the time under load before each kill and after the service is ready again."""
    with tempfile.TemporaryDirectory(prefix="fault-") as folder:
        home = Path(folder) / "bentoml"
        home.mkdir()
        profile = write_profile(Path(folder) / "profile.yaml", workers=WORKERS)
        found = kill_workers(home, profile, kills, callers, seconds)
    result = report.measured({"row_s": ROW_S, **found})
    report.write("fault", result, table(result))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    faults = result["faults"]

    def spread(key: str, digits: int) -> str:
        values = [fault[key] for fault in faults]
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    rows = {
        "kills in turn": result["kills"],
        "requests": sum(fault["requests"] for fault in faults),
        "lost": sum(fault["lost"] for fault in faults),
        "lost by one kill, median (min to max)": spread("lost", 0),
        "in flight in both workers at that moment": spread("in_flight", 0),
        "answered by the other worker meanwhile, requests/s": spread("answered_meanwhile_per_s", 0),
        "seconds until ready again": spread("seconds_until_ready", 1),
    }
    how = f"kill -9 of one of {result['workers']} workers under the load of {result['callers']} callers"
    return report.markdown(result, how, "a worker killed", rows)


if __name__ == "__main__":
    typer.run(main)
