"""What a handler does before it looks into a body."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from ortserve import body, routes
from ortserve.choice import Choice, Offer
from ortserve.edge import Request
from ortserve.errors import QueueFull, RequestError
from ortserve.profile import Limits
from ortserve.tasks.endpoint import Endpoint, Files, single
from ortserve.v2 import routes as v2_routes

MULTIPART = {b"content-type": b"multipart/form-data; boundary=x"}


@pytest.mark.parametrize(("full", "expected"), [(True, QueueFull), (False, RequestError)])
def test_a_full_queue_refuses_a_body_that_was_read_and_not_taken_apart(full: bool, expected: type[Exception]) -> None:
    messages = [{"type": "http.request", "body": b"no mult", "more_body": True}, {"type": "http.request", "body": b"ipart"}]
    budget = body.BufferBudget(1000)

    def expect_room() -> None:
        if full:
            raise QueueFull("expected room")

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    endpoint = Endpoint("/classify", Files("image", "image/", dict), single("predictions"))
    came: list[str] = []
    served: Any = SimpleNamespace(name="x", expect_room=expect_room, came=lambda: came.append("came"))
    handler = routes._predict(Choice([Offer(served, endpoint)]), Limits(), budget)
    with pytest.raises(expected):
        asyncio.run(handler(Request("POST", "/classify", MULTIPART, receive, b"")))
    assert not messages  # or its connection would have to close, and the caller might never see the answer
    assert budget.used == 0
    assert came == ["came"]


def test_tensors_are_let_in_at_their_heads_for_the_model_and_version_that_is_served() -> None:
    served: Any = SimpleNamespace(name="x", version="1")
    nothing: Any = None
    service = v2_routes._Service({"x": served}, Limits(), nothing, nothing, nothing, nothing)
    assert service.gate({"name": "x"}) is served
    assert service.gate({"name": "x", "version": "1"}) is served
    assert service.gate({"name": "x", "version": "2"}) is None  # answered with 404: it takes nobody's place meanwhile
    assert service.gate({"name": "y"}) is None
