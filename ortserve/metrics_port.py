"""`/metrics` on a port of its own, and nothing else there: for where the service's port is open to callers and its figures are not.

The listener is a thread of the parent process, so it outlives every worker and answers while they start, while they drain and while
none is left. It only reads the files that the workers write.
"""

from __future__ import annotations

import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ortserve.errors import NotFound, PortError, RequestError
from ortserve.metrics import Metrics
from ortserve.readiness import Readiness
from ortserve.replies import Reply, error_reply, log_failure

logger = logging.getLogger(__name__)

PATH = "/metrics"
_REQUEST_TIMEOUT_S = 10.0  # Prometheus' own default for a scrape: whoever sends slower gets nothing


def start(host: str, port: int, metrics: Metrics, readiness: Readiness) -> None:
    """Answer `/metrics` there, from a thread, until this process ends.

    `metrics` are this process's, made after `multiprocess.enter()`. Raises PortError where the port cannot be had.
    """
    try:
        server = _Server((host, port), metrics, readiness)
    except OSError as error:
        raise PortError(
            f"metrics.port {port} cannot be opened on metrics.host {host} ({error.strerror}): expected a free port that this user may "
            "open; choose another in the profile"
        ) from None
    threading.Thread(target=server.serve_forever, name="metrics-port", daemon=True).start()


class _Server(ThreadingHTTPServer):
    """Each scrape in a thread of its own: one that stalls keeps no other waiting."""

    daemon_threads = True  # a scrape under way does not hold up the end of the service

    def __init__(self, address: tuple[str, int], metrics: Metrics, readiness: Readiness) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Scrape)
        self.metrics = metrics
        self.readiness = readiness

    def server_bind(self) -> None:
        """Bind, without looking this host's name up as http.server does: a slow resolver would hold up the start."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Say that a scraper went away, and no more: http.server would print a trace."""
        logger.debug("a scrape was broken off", exc_info=True)


class _Scrape(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_TIMEOUT_S
    server_version = "ortserve"
    sys_version = ""

    def do_GET(self) -> None:
        """The metrics of every worker, or 404."""
        try:
            if self.path.partition("?")[0] != PATH:
                raise NotFound(f"no such path: this port has {PATH} only")
            text, content_type = self.server.metrics.scrape(self.server.readiness)
            reply = Reply(200, text, content_type.encode())
        except Exception as error:
            log_failure("metrics port", error)
            reply = error_reply(error)
        self._send(reply)

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Refuse, in the one shape of every error, what is no request or no GET."""
        reply = error_reply(RequestError(f"expected GET {PATH}, got something else: this port has that only"))
        self.close_connection = True
        self._send(Reply(code, reply.body))

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("content-type", reply.content_type.decode())
        self.send_header("content-length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, format: str, *values: object) -> None:
        """A line for each scrape only where every detail is wanted."""
        logger.debug(format, *values)
