"""Paths, methods and heads that are unknown, wrong, huge or no HTTP."""

from __future__ import annotations

import contextlib
import re
import socket

import httpx
import pytest

from tests.refusals import MIB, error_of, exchange, head, hear, peak_bytes, refused
from tests.serving import Server

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/classify/",
        "/classify/status",
        "/CLASSIFY",
        "/models/",
        "/models/nope",
        "/models/digits/1",
        "/models/..%2f..%2fetc%2fpasswd",
        "/models/%00",
        "/models/%ff%fe",
        "/static_content/../../../../etc/passwd",
        "/static_content/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/static_content/%2e%2e/%2e%2e/app.py",
        "/static_content/%00",
        "/static_content/nope.js",
        "/static_content/",
        "/%ed%a0%80",
        "/" + "a" * 8000,
        "/.git/config",
        "/service.py",
    ],
)
def test_an_unknown_path_is_404(client: httpx.Client, strict: Server, path: str) -> None:
    refused(client.get(path), 404, "not_found")
    said = exchange(strict, head(path, "Connection: close", method="GET"))
    assert error_of(said) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/classify", "POST"),
        ("PUT", "/classify", "POST"),
        ("DELETE", "/classify_batch", "POST"),
        ("OPTIONS", "/classify", "POST"),
        ("POST", "/models", "GET, HEAD"),
        ("PATCH", "/models/digits", "GET, HEAD"),
        ("POST", "/livez", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
        ("TRACE", "/metrics", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405(client: httpx.Client, method: str, path: str, allow: str) -> None:
    answer = client.request(method, path)
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/docs.json", "/schema.json", "/healthz", "/static_content/swagger-ui.css"])
def test_a_wrong_method_on_what_bentoml_answers_is_405_in_our_shape(client: httpx.Client, method: str, path: str) -> None:
    refused(client.request(method, path), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "sent",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Type: image/png\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_400_in_our_shape(client: httpx.Client, strict: Server, sent: bytes) -> None:  # noqa: ARG001
    assert error_of(exchange(strict, sent)) == (400, "bad_request")


@pytest.mark.parametrize(
    "sent",
    [
        head("/livez", "X: " + "a" * 100_000, method="GET"),
        head("/livez", *(f"X-{number}: a" for number in range(20_000)), method="GET"),
        head("/" + "a" * 100_000, method="GET"),
        b"GET /livez HTTP/1.1\r\nX: " + b"a" * MIB,
        b"GET /" + b"a" * MIB,
    ],
    ids=["one long", "many", "a long path", "one without end", "a path without end"],
)
def test_a_huge_head_is_431(client: httpx.Client, strict: Server, sent: bytes) -> None:  # noqa: ARG001
    memory = peak_bytes(strict)
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        assert error_of(hear(connection)) == (431, "headers_too_large")
    assert peak_bytes(strict) - memory < 16 * MIB


def test_a_head_below_the_limit_passes(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"x": "a" * 60_000}).status_code == 200


@pytest.mark.parametrize("sent", ["a b", "a/b", "<script>", "x" * 129, "ä", "", "a;b", "${jndi:ldap}"])
def test_a_request_id_that_is_not_safe_is_replaced(client: httpx.Client, sent: str) -> None:
    answer = client.post("/classify", files={"image": b"x"}, headers={"x-request-id": sent.encode("latin-1")})
    refused(answer, 400, "invalid_image")
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


def test_a_websocket_is_refused(client: httpx.Client, strict: Server) -> None:  # noqa: ARG001
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    said = exchange(strict, head("/classify", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key, method="GET"))
    assert said.split()[1] == b"403"
