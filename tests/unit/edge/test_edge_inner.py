"""What BentoML's application behind the edge answers, and what becomes of its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ortserve import errors
from tests.site import SECRET, Site, raising


@pytest.mark.parametrize(("path", "label"), [("/", "/"), ("/docs.json", "/docs.json"), ("/files/a.js", "/files/"), ("/files/", "/files/")])
def test_the_inner_application_keeps_its_paths(site: Site, path: str, label: str) -> None:
    answer = site.ask(path, headers=[(b"x-request-id", b"mine")])
    assert (answer.status, answer.body) == (200, b"inner " + path.encode())
    assert answer.headers["x-request-id"] == "mine"
    assert site.counted() == {(label, "200"): 1}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 405, 415, 422, 499, 500, 503])
def test_an_error_of_the_inner_application_is_replaced(status: int, streamed: bool) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"999"), (b"x-secret", b"1")]})
        if streamed:
            await send({"type": "http.response.body", "body": b"Traceback", "more_body": True})
            await send({"type": "http.response.body", "body": SECRET.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": SECRET.encode()})

    site = Site(inner)
    answer = site.ask("/")
    assert answer.status == status
    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
    assert "x-secret" not in answer.headers
    assert "Traceback" not in answer.body.decode()
    assert "onnxruntime" not in answer.body.decode()
    assert answer.error["code"] == {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}.get(
        status, "bad_request" if status < 500 else "internal"
    )
    assert site.counted() == {("/", str(status)): 1}


def test_an_inner_application_that_raises_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def inner(*_: Any) -> None:
        raise RuntimeError(SECRET)

    answer = Site(inner).ask("/")
    assert (answer.status, answer.error["code"]) == (500, "internal")
    assert SECRET in caplog.text


def test_an_inner_application_that_answers_500_and_raises_again_is_answered_once(caplog: pytest.LogCaptureFixture) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise RuntimeError(SECRET)  # as Starlette's ServerErrorMiddleware does

    answer = Site(inner).ask("/")
    assert (answer.status, len(answer.messages)) == (500, 2)
    record = next(record for record in caplog.records if record.exc_info)
    assert record.request_id == answer.error["request_id"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [RuntimeError(SECRET), errors.InvalidImage("no")])
def test_an_answer_that_breaks_in_its_middle_breaks_the_connection(error: Exception) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise error

    site = Site(inner)
    with pytest.raises(type(error)):
        site.ask("/")
    assert site.counted() == {("/", "500"): 1}
    assert site.in_progress() == 0


def test_lifespan_and_websockets_are_the_inner_applications() -> None:
    seen = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
        seen.append(scope["type"])

    for kind in ("lifespan", "websocket"):
        asyncio.run(Site(inner).edge({"type": kind}, raising, raising))  # type: ignore[arg-type]
    assert seen == ["lifespan", "websocket"]
