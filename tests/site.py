"""An edge over a fake inner application and fake routes, and what a caller of it sees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ortserve import body
from ortserve.edge import App, Edge, Handler, Request, Route
from ortserve.metrics import Metrics
from ortserve.replies import Reply, json_reply

Message = dict[str, Any]
SECRET = "/opt/model.onnx: onnxruntime said so"  # no answer may show it


@dataclass
class Answered:
    """What a caller saw."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode("latin-1") for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def error(self) -> dict[str, str]:
        error: dict[str, str] = json.loads(self.body)["error"]
        assert set(error) == {"code", "message", "request_id"}
        assert error["request_id"] == self.headers["x-request-id"]
        return error


async def inner_ok(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
    """An inner application that says where it was called."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"inner ", "more_body": True})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def raising(error: BaseException) -> Handler:
    async def handler(_: Request) -> Reply:
        raise error

    return handler


async def hello(request: Request) -> Reply:
    return json_reply({"path_value": request.path_values.get("name", "")})


async def take_body(request: Request) -> Reply:
    data = await body.read(request.receive, request.headers, limit_bytes=1_000_000, timeout_s=60, budget=body.BufferBudget(10**9))
    return json_reply({"bytes": len(data)})


ROUTES = (Route("GET", "/hello", hello), Route("GET", "/things/{name}", hello), Route("POST", "/take", take_body))


class Site:
    """An edge and its metrics."""

    def __init__(self, inner: App = inner_ok, extra: Sequence[Route] = ()) -> None:
        self.metrics = Metrics(service="s", version="1")
        self.edge = Edge(
            inner, [*ROUTES, *extra], passed_on=["/", "/docs.json"], mounts=["/files/"], metrics=self.metrics, tracer=None, access_log=True
        )

    def ask(
        self,
        path: str,
        method: str = "GET",
        headers: Sequence[tuple[bytes, bytes]] = (),
        messages: Sequence[Message] = ({"type": "http.request", "body": b""},),
        query: bytes = b"",
    ) -> Answered:
        scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "query_string": query}
        left, answered = list(messages), Answered()

        async def receive() -> Message:
            return left.pop(0) if left else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answered.messages.append(dict(message))

        asyncio.run(self.edge(scope, receive, send))
        return answered

    def counted(self) -> dict[tuple[str, str], float]:
        """{(endpoint, status): requests}."""
        return {
            (sample.labels["endpoint"], sample.labels["http_response_code"]): sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "bentoml_service_request_total"
        }

    def in_progress(self) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "bentoml_service_request_in_progress"
        )
