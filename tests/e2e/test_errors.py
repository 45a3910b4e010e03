"""Bad input against a running service: one shape of error, nothing of a library in it, and the next caller's answer stays right."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from PIL import Image

from ortserve.profile_file import SHIPPED
from tests.serving import ROOT, Server, until

pytestmark = pytest.mark.e2e

SEVEN = (ROOT / "examples" / "seven.png").read_bytes()
MIB = 1024 * 1024
LIMITS = {
    "max_image_bytes": MIB,
    "max_request_bytes": 2 * MIB,
    "max_image_pixels": 1_000_000,
    "max_images_per_request": 4,
    "body_timeout_ms": 1500,
}


@pytest.fixture(scope="module")
def strict(digits_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with small limits, so that going over them is cheap."""
    profile = yaml.safe_load((SHIPPED / "default.yaml").read_text())
    profile["limits"] |= LIMITS
    file = tmp_path_factory.mktemp("profile") / "strict.yaml"
    file.write_text(yaml.safe_dump(profile))
    with Server(digits_home, env={"ORTSERVE_PROFILE": str(file)}) as server:
        yield server


@pytest.fixture
def client(strict: Server) -> Iterator[httpx.Client]:
    """A client of it. What a test did to the service, its neighbours' answers stay right, in the same processes."""
    before = {process.pid for process in strict.processes()}
    with httpx.Client(base_url=strict.base_url, timeout=30) as client:
        yield client
        answer = client.post("/classify", files={"image": SEVEN})
        assert answer.json()["predictions"][0]["label"] == "7"
    assert {process.pid for process in strict.processes()} == before
    assert "ERROR" not in strict.log()
    assert "Traceback" not in strict.log()


def refused(answer: httpx.Response, status: int, code: str) -> str:
    """The message of an error answer, after its shape and its silence about the inside are checked."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    told = answer.json()
    assert list(told) == ["error"]
    error: dict[str, str] = told["error"]
    assert list(error) == ["code", "message", "request_id"]
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-request-id"]
    silent_about(answer.text.replace(str(answer.request.url), ""))
    return error["message"]


def silent_about(text: str) -> None:
    assert not re.search(
        r"traceback|onnx|bento|starlette|uvicorn|pillow|\bPIL\b|python|\.py\b|site-packages|libjpeg|line \d+", text, re.IGNORECASE
    )
    # A slash is that of a media type, an HTTP version or a path of this service, never of a file.
    allowed = r"multipart/form-data|image/|application/octet-stream|application/\S+|text/\S+|HTTP/1.1|GET /( |docs.json)"
    assert "/" not in re.sub(allowed, "", text), text


def png_header(width: int, height: int) -> bytes:
    """A whole PNG of a few bytes that says it is that large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(how: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 20, 30)).save(buffer, how)
    return buffer.getvalue()


# --- pictures ---------------------------------------------------------------------------------------------------------

NOT_WHOLE = {
    "empty": b"",
    "text": b"not a picture",
    "zeros": bytes(10_000),
    "random": bytes(range(256)) * 40,
    "html": b"<html><body>404</body></html>",
    "script": b"<script>alert(1)</script>",
    "PNG cut": SEVEN[: len(SEVEN) // 2],
    "PNG magic alone": SEVEN[:8],
    "PNG with a flipped byte": SEVEN[:5000] + bytes([SEVEN[5000] ^ 0xFF]) + SEVEN[5001:],
    "JPEG magic alone": b"\xff\xd8\xff",
    **{f"{how} cut": encoded(how)[:-40] for how in ("JPEG", "WebP", "BMP")},
    "GIF cut": encoded("GIF")[:30],
}
OTHER_KINDS = {
    "TIFF": encoded("TIFF"),
    "PDF": b"%PDF-1.7\n" + bytes(100),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "ICO": encoded("ICO"),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
}


@pytest.mark.parametrize("name", NOT_WHOLE)
def test_no_picture_or_half_of_one_is_400(client: httpx.Client, strict: Server, name: str) -> None:
    answer = client.post("/classify", files={"image": NOT_WHOLE[name]}, headers={"x-request-id": f"bad-{zlib.crc32(name.encode())}"})
    refused(answer, 400, "invalid_image")
    assert f"[{answer.headers['x-request-id']}] /classify: 400 invalid_image" in strict.log()
    refused(client.post("/classify", content=NOT_WHOLE[name], headers={"content-type": "image/png"}), 400, "invalid_image")


def test_what_the_decoder_said_is_in_the_log_under_the_request_id(client: httpx.Client, strict: Server) -> None:
    answer = client.post("/classify", files={"image": NOT_WHOLE["JPEG cut"]}, headers={"x-request-id": "why-it-failed"})
    refused(answer, 400, "invalid_image")
    line = next(line for line in strict.log().splitlines() if "[why-it-failed]" in line)
    assert re.search(r"\((OSError|SyntaxError|ValueError): .+\)$", line), line


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_another_kind_of_picture_is_415(client: httpx.Client, name: str) -> None:
    refused(client.post("/classify", files={"image": OTHER_KINDS[name]}), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "picture",
    [
        png_header(50_000, 50_000),
        png_header(2**31 - 1, 2**31 - 1),
        png_header(1001, 1000),
        b"GIF89a" + struct.pack("<HHB", 65535, 65535, 0) + b"\0\0," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;",
        b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 50_000, 50_000, 1, 24, 0) + bytes(24),
    ],
    ids=["png", "png at its limit", "png just over", "gif", "bmp"],
)
def test_too_many_pixels_are_413_by_the_header_alone(client: httpx.Client, strict: Server, picture: bytes) -> None:
    memory = peak_bytes(strict)
    assert "1000000 pixels" in refused(client.post("/classify", files={"image": picture}), 413, "image_too_large")
    assert peak_bytes(strict) - memory < 64 * MIB  # 2.5 gigapixels would be 7.5 GB


def peak_bytes(server: Server) -> int:
    """The largest resident memory any of the processes ever had."""
    peaks = []
    for process in server.processes():
        with contextlib.suppress(OSError, psutil.Error):
            status = Path(f"/proc/{process.pid}/status").read_text()
            peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024)  # type: ignore[index]
    return max(peaks)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "size"), [("/classify", MIB + 200_000), ("/classify_batch", 2 * MIB + 1)])
def test_over_the_byte_limit_is_413(client: httpx.Client, path: str, size: int) -> None:
    refused(client.post(path, files={"images": bytes(size)}), 413, "payload_too_large")


def test_a_picture_over_its_own_limit_in_a_body_within_it_is_413(client: httpx.Client) -> None:
    refused(client.post("/classify", content=bytes(MIB + 1), headers={"content-type": "image/png"}), 413, "payload_too_large")
    results = client.post("/classify_batch", files=[("images", bytes(MIB + 1)), ("images", SEVEN)]).json()["results"]
    assert results[0]["error"]["code"] == "payload_too_large"
    assert results[1]["predictions"][0]["label"] == "7"


def exchange(server: Server, *pieces: bytes, timeout_s: float = 20) -> bytes:
    """Everything the service said to these bytes until it closed the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return hear(connection)


def hear(connection: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said


def head(path: str = "/classify", *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def error_of(said: bytes) -> tuple[int, str]:
    """(status, code) of a raw answer, after its shape was checked."""
    top, _, body = said.partition(b"\r\n\r\n")
    request = httpx.Request("GET", "http://x/")
    headers = [line.split(b": ", 1) for line in top.split(b"\r\n")[1:]]
    answer = httpx.Response(int(top.split()[1]), headers=[(name, value) for name, value in headers], content=body, request=request)
    code = json.loads(body)["error"]["code"]
    refused(answer, answer.status_code, code)
    return answer.status_code, code


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


# --- the form ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "11",
        "-1",
        "1.0",
        "1e1",
        "abc",
        "",
        " 1",
        "1 ",
        "+1",
        "0x1",
        "1_0",
        "\u0661",
        "NaN",
        "null",
        "true",
        "9" * 30,
        "9" * 5000,
        "1\0",
        "[1]",
    ],
)
@pytest.mark.parametrize("where", ["field", "query"])
def test_top_k_out_of_range_is_422(client: httpx.Client, where: str, value: str) -> None:
    given: Any = {"data": {"top_k": value}} if where == "field" else {"params": {"top_k": value}}
    message = refused(client.post("/classify", files={"image": SEVEN}, **given), 422, "invalid_parameter")
    assert "from 1 to 10" in message
    assert len(message) < 200


def test_a_parameter_twice_is_422(client: httpx.Client) -> None:
    both = client.post("/classify", files={"image": SEVEN}, data={"top_k": "1"}, params={"top_k": "1"})
    twice = client.post("/classify?top_k=1&top_k=1", files={"image": SEVEN})
    form = client.post("/classify", files=[("image", SEVEN), ("top_k", (None, b"1")), ("top_k", (None, b"1"))])
    for answer in (both, twice, form):
        assert "once" in refused(answer, 422, "invalid_parameter")


@pytest.mark.parametrize("name", ["topk", "top-k", "TOP_K", "", "ä", "\x00", "a" * 1000, "../../etc", "<b>"])
def test_an_unknown_parameter_is_422(client: httpx.Client, name: str) -> None:
    answer = client.post("/classify", files={"image": SEVEN}, params={name: "1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_parameter")
    assert len(answer.text) < 400


def test_many_parameters_are_422(client: httpx.Client) -> None:
    refused(client.post("/classify?" + "&".join(f"a{number}=1" for number in range(100)), files={"image": SEVEN}), 422, "invalid_parameter")


def test_a_picture_too_many_and_none_are_400(client: httpx.Client) -> None:
    assert "'image'" in refused(client.post("/classify", files=[("image", SEVEN)] * 2), 400, "bad_request")
    assert "'image'" in refused(client.post("/classify", files={"picture": (None, b"1")}), 400, "bad_request")
    assert "'images'" in refused(client.post("/classify_batch", files=[("images", SEVEN)] * 5), 400, "bad_request")
    refused(client.post("/classify_batch", files=[("images", b"x")] * 500), 400, "bad_request")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"--B",
        b"--B\r\n",
        b"--X--\r\n",
        b"--B\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n" + SEVEN,
        b"--B\r\nContent-Disposition: form-data; name=image; filename=a\r\n" + b"A: b\r\n" * 5000 + b"\r\nx\r\n--B--",
        b"--B\r\nContent-Disposition: form-data; name=\xff\xfe\r\n\r\n1\r\n--B--",
        b"--B\r\nContent-Disposition: form-data; name*99999=a\r\n\r\n1\r\n--B--",
        b'--B\r\nContent-Disposition: form-data; name="a\0b"\r\n\r\n1\r\n--B--',
        b"--B\r\n\r\n\r\n--B--",
        SEVEN,
    ],
)
def test_a_broken_form_is_400(client: httpx.Client, sent: bytes) -> None:
    refused(client.post("/classify", content=sent, headers={"content-type": "multipart/form-data; boundary=B"}), 400, "bad_request")


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'B' * 71}"])
def test_a_form_without_a_right_boundary_is_400(client: httpx.Client, kind: str) -> None:
    refused(client.post("/classify", content=b"--B--", headers={"content-type": kind}), 400, "bad_request")


class _Trap:
    """What a pickle that is ever loaded would do: leave a file behind."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self._file,))


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "application/vnd.bentoml+pickle",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/mixed; boundary=B",
        "imagex/png",
        ";",
        "x" * 5000,
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/classify_batch"])
def test_another_media_type_is_415(client: httpx.Client, tmp_path: Path, path: str, kind: str | None) -> None:
    trap = tmp_path / "loaded"
    sent = json.dumps({"image": "aGk="}).encode() if kind == "application/json" else pickle.dumps({"image": _Trap(trap)})
    answer = client.post(path, content=sent, headers={} if kind is None else {"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert len(answer.text) < 400
    assert not trap.exists()


def test_an_address_in_place_of_a_file_is_never_fetched(client: httpx.Client) -> None:
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(60)

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = trap.accept()
                    seen.append(connection.recv(10))
                    connection.close()

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/seven.png".encode()
        refused(client.post("/classify", files={"image": (None, url)}), 400, "bad_request")
        refused(client.post("/classify", files={"image": ("a.png", url, "image/png")}), 400, "invalid_image")
        refused(client.post("/classify", content=url, headers={"content-type": "image/png"}), 400, "invalid_image")
        refused(client.post("/classify", data={"image": url.decode()}), 415, "unsupported_media_type")
        refused(client.post("/classify", json={"image": url.decode()}), 415, "unsupported_media_type")
        results = client.post("/classify_batch", files=[("images", (None, url)), ("images", SEVEN)]).json()["results"]
        assert results[0]["error"]["code"] == "bad_request"
        assert results[1]["predictions"][0]["label"] == "7"
        refused(client.post("/classify", files={"image": (None, b"file:///etc/passwd")}), 400, "bad_request")
        with socket.create_connection(trap.getsockname()) as last:  # the listener does hear
            last.sendall(b"me")
            last.recv(1)
        trap.shutdown(socket.SHUT_RDWR)
    listener.join(10)
    assert seen == [b"me"]


# --- paths, methods, headers ------------------------------------------------------------------------------------------


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


# --- callers that leave -----------------------------------------------------------------------------------------------


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
