"""Callers that close their connection before they are answered."""

from __future__ import annotations

import contextlib
import socket

import httpx
import pytest

from tests.refusals import SEVEN, head
from tests.serving import Server, until

pytestmark = pytest.mark.e2e


def gone(server: Server) -> float:
    return sum(
        value
        for (name, labels), value in server.metrics().items()
        if name == "bentoml_service_request_total" and ("http_response_code", "499") in labels
    )


def test_a_caller_that_leaves_in_the_middle_of_its_body(client: httpx.Client, strict: Server) -> None:  # noqa: ARG001
    before = gone(strict)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as connection:
            connection.sendall(head("/classify", "Content-Type: image/png", "Content-Length: 100000") + SEVEN[:1000])
    until(lambda: gone(strict) == before + 10)


def test_callers_that_leave_while_they_wait(client: httpx.Client, strict: Server) -> None:
    ask = head("/classify", "Content-Type: image/png", f"Content-Length: {len(SEVEN)}") + SEVEN
    with contextlib.ExitStack() as open_sockets:
        for _ in range(50):
            open_sockets.enter_context(socket.create_connection(("127.0.0.1", strict.port), timeout=20)).sendall(ask)
        assert client.post("/classify", files={"image": SEVEN}).status_code == 200
    for name in ("bentoml_service_request_in_progress", "ortserve_queue_size_rows", "ortserve_batches_in_flight"):
        until(
            lambda name=name: (
                sum(
                    value
                    for (sample, labels), value in strict.metrics().items()
                    if sample == name and ("endpoint", "/metrics") not in labels
                )
                == 0
            )
        )
