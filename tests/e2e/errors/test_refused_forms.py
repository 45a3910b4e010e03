"""Parameters, form fields and media types that are not what a path takes."""

from __future__ import annotations

import contextlib
import json
import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.refusals import SEVEN, refused

pytestmark = pytest.mark.e2e


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
