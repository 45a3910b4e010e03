"""Error answers as a caller sees them: their one shape, their silence about the inside, and requests byte by byte."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from pathlib import Path

import httpx
import psutil

from tests.serving import ROOT, Server

SEVEN = (ROOT / "examples" / "seven.png").read_bytes()
MIB = 1024 * 1024
LIMITS = {
    "max_image_bytes": MIB,
    "max_request_bytes": 2 * MIB,
    "max_image_pixels": 1_000_000,
    "max_images_per_request": 4,
    "body_timeout_ms": 1500,
}


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


def peak_bytes(server: Server) -> int:
    """The largest resident memory any of the processes ever had."""
    peaks = []
    for process in server.processes():
        with contextlib.suppress(OSError, psutil.Error):
            status = Path(f"/proc/{process.pid}/status").read_text()
            peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024)  # type: ignore[index]
    return max(peaks)
