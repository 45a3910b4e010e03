"""A rolling update rehearsed on one machine: one version after another behind a real HAProxy, under load, each ended by SIGTERM.

`python -m deploy.rehearsal.rolling_update` writes `deploy/results/rolling.json` and, for people, `rolling.md`; its exit status is 1 where
a single request failed. HAProxy retries nothing and every caller sends a request once, so nothing that went wrong is hidden.
"""

from __future__ import annotations

import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from deploy.rehearsal import report
from deploy.rehearsal.callers import Callers, Sent, failures
from deploy.rehearsal.haproxy import CHECK_EVERY_MS, PLACES, HAProxy, NoProxy
from tests.packages import add_package, picture, write_profile
from tests.serving import Server

DRAIN_DELAY_MS = 1000  # ten checks of the proxy, of which three suffice: it has long stopped sending when the service stops accepting
FLIGHT_WAIT_S = 10.0  # for a moment with somebody under way: there is one in most moments
ROW_S = 0.02  # what the model takes for a picture: several requests are always under way


def rehearse(home: Path, profile: str, updates: int, callers: int, seconds: float) -> dict[str, Any]:
    """So many updates under the load of so many callers, with that time between them; and what became of every request."""
    versions = [f"colours:{number + 1}" for number in range(updates + 1)]
    for tag in versions:
        add_package(home, tag, seconds_per_row=ROW_S)
    ended: list[dict[str, Any]] = []
    with HAProxy() as proxy, ExitStack() as servers:

        def start(tag: str) -> Server:
            return servers.enter_context(Server(home, env={"ORTSERVE_PROFILE": profile, "ORTSERVE_MODEL": tag}))

        old = start(versions[0])
        proxy.fill(PLACES[0], old.port)
        with Callers(proxy.port, picture("green"), "image/png", callers) as load:
            time.sleep(seconds)
            for number, tag in enumerate(versions[1:], 1):
                new = start(tag)  # back when it is ready
                proxy.fill(PLACES[number % 2], new.port)
                time.sleep(seconds)
                ended.append(_end(old))
                proxy.empty(PLACES[(number - 1) % 2])
                old = new
            time.sleep(seconds)
        sent = load.sent()
    return {
        "updates": updates,
        "callers": callers,
        "requests": len(sent),
        "failed": sum(failures(sent).values()),
        "failures": failures(sent),
        "answered_by_version": dict(Counter(one.version for one in sent if one.version)),
        "p99_ms": {
            "apart_from_drains": p99_ms([one for one in sent if not _in(one, ended)]),
            "in_drains": p99_ms([one for one in sent if _in(one, ended)]),
        },
        "drains": ended,
    }


def _end(old: Server) -> dict[str, Any]:
    """SIGTERM to the old version while it is answering somebody, and how it ended."""
    deadline = time.monotonic() + FLIGHT_WAIT_S
    while not (in_flight := in_progress(old)) and time.monotonic() < deadline:
        pass  # to ask takes milliseconds
    begun = time.monotonic()
    old.process.send_signal(signal.SIGTERM)
    status = old.wait_exit()
    return {"in_flight_at_sigterm": in_flight, "exit_status": status, "begun": begun, "seconds": time.monotonic() - begun}


def in_progress(server: Server) -> int:
    """How many pictures a service is answering, as it says itself."""
    samples = server.metrics().items()
    return int(
        sum(
            value
            for (name, labels), value in samples
            if name == "bentoml_service_request_in_progress" and ("endpoint", "/classify") in labels
        )
    )


def _in(one: Sent, ended: Sequence[dict[str, Any]]) -> bool:
    return any(one.ended >= drain["begun"] and one.begun <= drain["begun"] + drain["seconds"] for drain in ended)


def p99_ms(sent: Sequence[Sent]) -> float | None:
    """99 of 100 were done with in this time."""
    taken = sorted(one.ended - one.begun for one in sent)
    return taken[min(len(taken) - 1, int(len(taken) * 0.99))] * 1000 if taken else None


def main(updates: int = 3, callers: int = 8, seconds: float = 3.0) -> None:
    """Rehearse and write. SECONDS is the time before, between and after the updates."""
    with tempfile.TemporaryDirectory(prefix="rolling-") as folder:
        home = Path(folder) / "bentoml"
        home.mkdir()
        profile = write_profile(Path(folder) / "profile.yaml", stopping={"drain_delay_ms": DRAIN_DELAY_MS})
        try:
            found = rehearse(home, profile, updates, callers, seconds)
        except NoProxy as error:
            raise SystemExit(f"error: {error}") from None
    for drain in found["drains"]:
        del drain["begun"]
    settings = {"drain_delay_ms": DRAIN_DELAY_MS, "check_every_ms": CHECK_EVERY_MS, "row_s": ROW_S}
    result = report.measured(settings | found)
    report.write("rolling", result, table(result))
    raise SystemExit(result["failed"] > 0)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    drains = result["drains"]
    in_flight = [drain["in_flight_at_sigterm"] for drain in drains]
    seconds = [drain["seconds"] for drain in drains]
    rows = {
        "updates in turn": result["updates"],
        "requests": result["requests"],
        "failed": result["failed"],
        "in flight in the old version at each SIGTERM": ", ".join(map(str, in_flight)),
        "seconds from SIGTERM to the end, median": f"{statistics.median(seconds):.1f}",
        "exit status": ", ".join(str(drain["exit_status"]) for drain in drains),
        "p99 apart from drains, ms": f"{result['p99_ms']['apart_from_drains']:.0f}",
        "p99 in drains, ms": f"{result['p99_ms']['in_drains']:.0f}",
    }
    how = (
        f"HAProxy without retries, `/readyz` checked every {result['check_every_ms']} ms, "
        f"`drain_delay_ms: {result['drain_delay_ms']}`, {result['callers']} callers"
    )
    return report.markdown(result, how, "rolling update", rows)


if __name__ == "__main__":
    typer.run(main)
