"""A real HAProxy in front of two places for a service, which are filled and emptied while it runs."""

from __future__ import annotations

import csv
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from ortserve.tune.ports import free_port

PLACES = ("one", "two")
CHECK_EVERY_MS = 100
FALL = 3  # failed checks in a row after which nothing more is sent there; HAProxy's default: one may be late for want of a CPU
# No retries: a connection that the service breaks is an error that a caller sees, not one that the proxy hides.
_CONFIGURATION = """
global
    stats socket {folder}/admin.sock mode 600 level admin
defaults
    mode http
    retries 0
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend callers
    bind 127.0.0.1:{port}
    default_backend service
backend service
    balance roundrobin
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter {check_ms}ms fall {fall} rise 1
    server one 127.0.0.1:1 disabled
    server two 127.0.0.1:1 disabled
"""


class NoProxy(Exception):
    """HAProxy is not installed, or did not start."""


class HAProxy:
    """HAProxy on a free port of 127.0.0.1, inside a `with` block. It asks a place's /readyz every `CHECK_EVERY_MS`."""

    def __init__(self) -> None:
        self.port = free_port()

    def __enter__(self) -> HAProxy:
        program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if program is None:
            raise NoProxy("there is no haproxy here: deploy/install-test-tools installs it")
        self._folder = Path(tempfile.mkdtemp(prefix="haproxy-"))
        file = self._folder / "haproxy.cfg"
        file.write_text(_CONFIGURATION.format(folder=self._folder, port=self.port, check_ms=CHECK_EVERY_MS, fall=FALL), encoding="utf-8")
        self.log = self._folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen([program, "-db", "-f", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while not (self._folder / "admin.sock").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(encoding="utf-8")
                self.__exit__(None, None, None)
                raise NoProxy(f"haproxy did not start: {said}")
            time.sleep(0.02)  # a foreign process: there is no event to wait for
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def fill(self, place: str, port: int) -> None:
        """Let a service on that port stand in that place; back once HAProxy itself has found it ready."""
        self._command(f"set server service/{place} addr 127.0.0.1 port {port}")
        self._command(f"set server service/{place} state ready")
        deadline = time.monotonic() + 30
        while not self.takes(place):
            if time.monotonic() > deadline:
                raise NoProxy(f"haproxy did not find the service on port {port} ready within 30 s")
            time.sleep(0.02)

    def empty(self, place: str) -> None:
        """Forget the service in that place."""
        self._command(f"set server service/{place} state maint")

    def takes(self, place: str) -> bool:
        """True while requests are sent to that place and its last check was good."""
        lines = self._command("show stat").removeprefix("# ").splitlines()
        row = next(row for row in csv.DictReader(lines) if (row["pxname"], row["svname"]) == ("service", place))
        return row["status"].startswith("UP") and row["check_status"] == "L7OK"

    def _command(self, line: str) -> str:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._folder / "admin.sock"))
            admin.sendall(f"{line}\n".encode())
            return admin.makefile().read().strip()
