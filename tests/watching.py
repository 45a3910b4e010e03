"""The real Prometheus and Alertmanager on the shipped configuration, and a webhook that keeps what it is told: for tests and the trip."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from ortserve.tune.ports import free_port
from tests.serving import ROOT, until

DEPLOY = ROOT / "deploy"
RULES = tuple(sorted((DEPLOY / "prometheus" / "rules").glob("*.yaml")))
_TOOLS = {"promtool": ("promtool",), "amtool": ("amtool",), "docker-compose": ("docker-compose",), "prometheus": ("prometheus",)}
_TOOLS["alertmanager"] = ("prometheus-alertmanager", "alertmanager")  # Debian's name, and everybody else's


def tool(name: str) -> str:
    """The path of that program. Skips the test where it is missing, except in CI, where it fails."""
    found = next((path for candidate in _TOOLS[name] if (path := shutil.which(candidate))), None)
    if found is None:
        reason = f"{name} is not here: run deploy/install-test-tools"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return str(found)


def run_tool(name: str, *arguments: str, cwd: Path = ROOT) -> str:
    """What the program printed. Raises AssertionError with its output where it failed."""
    result = subprocess.run([tool(name), *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, f"{name} {' '.join(arguments)} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr


@cache
def alert_rules() -> Mapping[str, Mapping[str, Any]]:
    """The shipped alert rules by their name."""
    return {rule["alert"]: rule for rule in _rules() if "alert" in rule}


@cache
def recording_rules() -> Mapping[str, str]:
    """The expressions of the shipped recording rules by their name."""
    return {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}


def _rules() -> list[dict[str, Any]]:
    return [rule for file in RULES for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


_NAME = re.compile(r"\b(?:ortserve|bentoml_service)_[a-z0-9_]+\b")


def metric_names(expression: str) -> set[str]:
    """The service's own metrics in a PromQL expression, as the catalogue names them; recording rules are followed to what they record."""
    names: set[str] = set()
    for record in sorted(recording_rules(), key=len, reverse=True):
        if record in expression:
            expression = expression.replace(record, "")
            names |= metric_names(recording_rules()[record])
    return names | {re.sub(r"_(bucket|sum|count)$", "", name) for name in _NAME.findall(expression)}


def dashboard_queries() -> list[str]:
    """Every query of the dashboard, annotations and variables included, as it is written."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "ortserve.json").read_text(encoding="utf-8"))
    return [
        *(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())),
        *(annotation["expr"] for annotation in dashboard["annotations"]["list"]),
    ]


def filled_in(query: str) -> str:
    """The query with the dashboard's variables at their first value: all models."""
    return query.replace("$model", ".*")


# --- the webhook -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One alert as the webhook was told of it, and when (`time.monotonic()`)."""

    name: str
    status: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    at: float


@dataclass
class Webhook:
    """A local receiver of Alertmanager's webhook."""

    told: list[Told] = field(default_factory=list)
    url: str = ""

    def got(self, name: str, status: str) -> bool:
        """Whether it was told of that alert in that status."""
        return self.first(name, status) is not None

    def first(self, name: str, status: str) -> Told | None:
        """The first word of that alert in that status."""
        return next((alert for alert in self.told if (alert.name, alert.status) == (name, status)), None)


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A webhook that listens on a free port."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            now = time.monotonic()
            hook.told += [
                Told(alert["labels"]["alertname"], alert["status"], alert["labels"], alert["annotations"], now) for alert in body["alerts"]
            ]
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: the test says what went wrong."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hook.url = f"http://127.0.0.1:{server.server_port}/alerts"
    try:
        yield hook
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- Prometheus and Alertmanager -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus and its HTTP API."""

    url: str

    def ask(self, path: str, **parameters: str | float) -> Any:
        """`data` of the API's answer. Raises AssertionError with Prometheus' own words where it refuses: a query it cannot parse, say."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"Prometheus refuses {path} {parameters}: {error.read().decode()}") from None

    def value(self, expression: str) -> float | None:
        """The one value of that expression now; None where there is none."""
        result = self.ask("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None

    def alert_state(self, name: str) -> str | None:
        """pending or firing; None while the alert is quiet."""
        return next((alert["state"] for alert in self.ask("alerts")["alerts"] if alert["labels"]["alertname"] == name), None)


@contextmanager
def watching(folder: Path, targets: Sequence[str], hook: Webhook, *, faster: int = 1) -> Iterator[Prometheus]:
    """Prometheus and Alertmanager on the shipped configuration: it scrapes `targets` (HOST:PORT) and tells `hook`.

    Only addresses are changed, and with `faster` every interval and every `for` is divided by that; expressions stay as they are.
    """
    own, other = free_port(), free_port()
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{other}"]}]
    receivers = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8"))
    receivers["receivers"][0]["webhook_configs"][0]["url"] = hook.url
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules").mkdir()
    _write(folder / "prometheus.yml", config, faster)
    _write(folder / "alertmanager.yml", receivers, faster)
    for file in RULES:
        _write(folder / "rules" / file.name, yaml.safe_load(file.read_text(encoding="utf-8")), faster)
    with ExitStack() as processes:
        processes.enter_context(
            _process(
                [
                    tool("alertmanager"),
                    f"--config.file={folder / 'alertmanager.yml'}",
                    f"--storage.path={folder / 'alertmanager'}",
                    f"--web.listen-address=127.0.0.1:{other}",
                    "--cluster.listen-address=",
                ],
                folder / "alertmanager.log",
                f"http://127.0.0.1:{other}/-/ready",
            )
        )
        processes.enter_context(
            _process(
                [
                    tool("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{own}",
                ],
                folder / "prometheus.log",
                f"http://127.0.0.1:{own}/-/ready",
            )
        )
        yield Prometheus(f"http://127.0.0.1:{own}")


_INTERVALS = {"scrape_interval", "scrape_timeout", "evaluation_interval", "for", "group_wait", "group_interval", "repeat_interval"}
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000}


def _write(path: Path, config: Any, faster: int) -> None:
    path.write_text(yaml.safe_dump(_quicker(config, faster), sort_keys=False), encoding="utf-8")


def _quicker(value: Any, faster: int) -> Any:
    if isinstance(value, list):
        return [_quicker(item, faster) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: f"{int(item[:-1]) * _UNITS_MS[item[-1]] // faster}ms" if key in _INTERVALS else _quicker(item, faster)
        for key, item in value.items()
    }


@contextmanager
def _process(command: Sequence[str], log: Path, ready_url: str) -> Iterator[None]:
    """A process that answers at `ready_url` inside the block and is gone after it."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)

    def ready() -> bool:
        assert process.poll() is None, f"{command[0]} ended with {process.returncode}:\n{log.read_text(errors='replace')}"
        try:
            with urllib.request.urlopen(ready_url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(ready, 30)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
