"""Bodies that are too long, endless, or stop coming."""

from __future__ import annotations

import contextlib
import socket

import httpx
import pytest

from tests.refusals import LIMITS, MIB, SEVEN, error_of, exchange, head, hear, peak_bytes, refused
from tests.serving import Server

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("path", "size"), [("/classify", MIB + 200_000), ("/classify_batch", 2 * MIB + 1)])
def test_over_the_byte_limit_is_413(client: httpx.Client, path: str, size: int) -> None:
    refused(client.post(path, files={"images": bytes(size)}), 413, "payload_too_large")


def test_a_picture_over_its_own_limit_in_a_body_within_it_is_413(client: httpx.Client) -> None:
    refused(client.post("/classify", content=bytes(MIB + 1), headers={"content-type": "image/png"}), 413, "payload_too_large")
    results = client.post("/classify_batch", files=[("images", bytes(MIB + 1)), ("images", SEVEN)]).json()["results"]
    assert results[0]["error"]["code"] == "payload_too_large"
    assert results[1]["predictions"][0]["label"] == "7"


def test_a_declared_gigabyte_is_refused_before_a_byte_of_it_is_sent(client: httpx.Client, strict: Server) -> None:  # noqa: ARG001
    # Closed by the service: hear() comes back.
    said = exchange(strict, head("/classify", "Content-Type: image/png", "Content-Length: 1000000000"))
    assert error_of(said) == (413, "payload_too_large")
    said = exchange(strict, head("/classify", "Content-Type: image/png", "Content-Length: 1000000000", "Expect: 100-continue"))
    assert b"100 Continue" not in said
    assert error_of(said) == (413, "payload_too_large")


def test_a_body_within_the_limit_is_told_to_continue(client: httpx.Client, strict: Server) -> None:  # noqa: ARG001
    ask = head("/classify", "Content-Type: image/png", f"Content-Length: {len(SEVEN)}", "Expect: 100-continue", "Connection: close")
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as connection:
        connection.sendall(ask)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(SEVEN)
        assert b'"label":"7"' in hear(connection)


@pytest.mark.parametrize("path", ["/classify", "/classify_batch", "/nope", "/models"])
@pytest.mark.parametrize("framing", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
def test_an_endless_body_is_stopped(client: httpx.Client, strict: Server, path: str, framing: str) -> None:  # noqa: ARG001
    memory = peak_bytes(strict)
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n" if "chunked" in framing else bytes(65536)
    sent = 0
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as connection:
        connection.sendall(head(path, "Content-Type: multipart/form-data; boundary=B", framing))
        with contextlib.suppress(ConnectionError):
            while sent < 64 * MIB:
                connection.sendall(chunk)
                sent += len(chunk)
        said = hear(connection)
    # What is sent beyond the limit lies in the buffers of both sockets: some megabytes.
    assert sent < 2 * LIMITS["max_request_bytes"] + 16 * MIB
    assert peak_bytes(strict) - memory < 32 * MIB
    if said:  # a reset may overtake the answer
        assert error_of(said) == {"/nope": (404, "not_found"), "/models": (405, "method_not_allowed")}.get(path, (413, "payload_too_large"))


def test_a_body_that_stops_coming_is_408_and_costs_nobody(client: httpx.Client, strict: Server) -> None:
    with contextlib.ExitStack() as open_sockets:
        slow = [open_sockets.enter_context(socket.create_connection(("127.0.0.1", strict.port), timeout=20)) for _ in range(20)]
        for connection in slow:
            connection.sendall(head("/classify", "Content-Type: image/png", "Content-Length: 1000") + b"\x89PNG")
        assert client.post("/classify", files={"image": SEVEN}).status_code == 200
        for connection in slow:
            assert error_of(hear(connection)) == (408, "request_timeout")
