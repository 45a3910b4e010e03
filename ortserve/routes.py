"""The handlers behind the edge's routes: payloads out of the body, answers out of the model, facts and health."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from ortserve import body, gpu
from ortserve.edge import Handler, Receive, Request, Route
from ortserve.errors import InvalidParameter, NotFound, RequestError, ServingError, UnsupportedMediaType
from ortserve.liveness import Liveness
from ortserve.metrics import Metrics, render
from ortserve.model import Answer, Payload, ServedModel
from ortserve.page import page
from ortserve.profile import Limits, Profile
from ortserve.readiness import Readiness
from ortserve.replies import Reply, error_body, json_reply, log_failure
from ortserve.tasks.endpoint import Endpoint

T = TypeVar("T")

MULTIPART_OVERHEAD_BYTES = 64 * 1024  # boundaries, part headers and form fields around one picture
MAX_FIELDS = 16  # form fields beside the pictures; an endpoint knows one or two


def build(served: ServedModel, profile: Profile, readiness: Readiness, liveness: Liveness, metrics: Metrics) -> list[Route]:
    """Every route of the service: the task's endpoints, the models' facts, health and metrics."""
    budget = body.BufferBudget(profile.limits.max_buffered_bytes)
    models = {served.name: served}
    return [
        *(Route("POST", endpoint.path, _predict(served, endpoint, profile.limits, budget)) for endpoint in served.task.endpoints),
        Route("GET", "/", page(served.name)),
        Route("GET", "/models", _list_models(models, profile)),
        Route("GET", "/models/{name}", _show_model(models, profile)),
        Route("GET", "/livez", _alive(liveness)),
        Route("GET", "/readyz", _ready(readiness)),
        Route("GET", "/metrics", _metrics(metrics)),
    ]


def _predict(served: ServedModel, endpoint: Endpoint, limits: Limits, budget: body.BufferBudget) -> Handler:
    """A task's endpoint: one payload (`endpoint.many` False) or an answer or error for each of many."""
    limit_bytes = limits.max_request_bytes if endpoint.many else limits.max_image_bytes + MULTIPART_OVERHEAD_BYTES
    max_payloads = limits.max_images_per_request if endpoint.many else 1

    async def handler(request: Request) -> Reply:
        kind, options = body.media_type(request.headers)
        _accept(kind, endpoint)
        data = await body.read(
            request.receive, request.headers, limit_bytes=limit_bytes, timeout_s=limits.body_timeout_ms / 1000, budget=budget
        )
        try:
            payloads: Sequence[Payload]
            fields = _fields(request.query())
            if kind == "multipart/form-data":
                parts = body.parse_multipart(data, options.get(b"boundary", b""), max_parts=max_payloads + MAX_FIELDS)
                payloads = _payloads(parts, endpoint, max_payloads, fields)
            else:
                payloads = [data]
            value, answer = await unless_gone(request.receive, respond(served, endpoint, payloads, fields))
            if answer is not None and request.span is not None:
                request.span.record_stages(_stages(answer))
            return json_reply(value, headers=[] if answer is None else [_server_timing(answer)])
        finally:
            budget.give_back(len(data))

    return handler


async def respond(
    served: ServedModel, endpoint: Endpoint, payloads: Sequence[Payload], fields: Mapping[str, str]
) -> tuple[dict[str, Any], Answer | None]:
    """The JSON of an endpoint's answer, and for a single payload where its time went."""
    head = {"model": served.name, "version": served.version}
    parameters = served.task.parameters(fields)
    if endpoint.many:
        answers = await served.predict_many(payloads, parameters)
        return {**head, "results": [_result(answer, endpoint) for answer in answers]}, None
    answer = await served.predict(payloads[0], parameters)
    return {**head, endpoint.answer: answer.value}, answer


def _accept(kind: str, endpoint: Endpoint) -> None:
    """Refuse a media type before a byte of the body is read."""
    if kind == "multipart/form-data" or (kind.startswith(endpoint.raw_media_type) and not endpoint.many):
        return
    raw = "" if endpoint.many else f", or the bytes as the body with Content-Type: {endpoint.raw_media_type}..."
    raise UnsupportedMediaType(
        f"expected multipart/form-data with the field {endpoint.field!r}{raw}, got {kind[:64] or 'no Content-Type'!r}"
    )


def _fields(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in pairs:
        _add(fields, name, value)
    return fields


def _add(fields: dict[str, str], name: str, value: str) -> None:
    if name in fields:
        raise InvalidParameter(f"expected {name[:64]!r} once, got it twice: send it as a form field or as a query parameter")
    fields[name] = value


def _payloads(parts: Sequence[body.Part], endpoint: Endpoint, max_payloads: int, fields: dict[str, str]) -> list[Payload]:
    """The payloads among the parts, or what is wrong with one; the other parts are added to `fields`."""
    payloads: list[Payload] = []
    for part in parts:
        if part.name == endpoint.field:
            payloads.append(_payload(part, endpoint))
        else:
            _add(fields, part.name, bytes(part.data[:1024]).decode("utf-8", "replace"))
    if not payloads:
        raise RequestError(f"expected a file in the form field {endpoint.field!r}, got none: curl -F {endpoint.field}=@FILE")
    if len(payloads) > max_payloads:
        raise RequestError(
            f"expected at most {max_payloads} in the form field {endpoint.field!r}, got {len(payloads)}: send several requests"
        )
    return payloads


def _payload(part: body.Part, endpoint: Endpoint) -> Payload:
    if part.filename is None and part.content_type is None:
        return RequestError(
            f"expected {endpoint.field!r} to carry a file's bytes, got text: upload the file itself (curl -F {endpoint.field}=@FILE); "
            "addresses and paths are never fetched"
        )
    if part.content_type and not part.content_type.startswith((endpoint.raw_media_type, "application/octet-stream")):
        return UnsupportedMediaType(
            f"expected {endpoint.field!r} as {endpoint.raw_media_type}... or application/octet-stream, got {part.content_type[:64]!r}"
        )
    return part.data


def _result(answer: Answer | RequestError | ServingError, endpoint: Endpoint) -> Any:
    if isinstance(answer, Answer):
        return {endpoint.answer: answer.value}
    log_failure(endpoint.path, answer)
    return error_body(answer.code, str(answer))


def _server_timing(answer: Answer) -> tuple[bytes, bytes]:
    """Where the time went, in milliseconds, as the W3C's Server-Timing header: any browser or client can show it."""
    return b"server-timing", ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in _stages(answer).items()).encode()


def _stages(answer: Answer) -> dict[str, float]:
    """Where the time went, stage by stage, in seconds."""
    return {"decode": answer.decode_s, "queue": answer.queue_s, "inference": answer.inference_s}


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, or ClientGone as soon as the caller closes the connection; the work is cancelled then.

    To be called once the body was read: the next message can only be `http.disconnect` (ASGI, HTTP connection scope).
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(receive())
    watcher.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        if watcher.done() and not watcher.cancelled():
            raise body.ClientGone from None
        raise
    finally:
        watcher.cancel()


def _list_models(models: Mapping[str, ServedModel], profile: Profile) -> Handler:
    async def handler(_: Request) -> Reply:
        keys = ("name", "version", "provider", "precision", "sha256")
        listed = [{**{key: facts[key] for key in keys}, "task": facts["manifest"]["task"]} for facts in _facts(models)]
        return json_reply({"profile": profile.name, "models": listed})

    return handler


def _facts(models: Mapping[str, ServedModel]) -> list[Mapping[str, Any]]:
    return [served.facts() for served in models.values()]


def _show_model(models: Mapping[str, ServedModel], profile: Profile) -> Handler:
    async def handler(request: Request) -> Reply:
        if request.path_value not in models:
            raise NotFound(f"no such model: this service has {', '.join(models)}")
        return json_reply({"profile": profile.name, **models[request.path_value].facts()})

    return handler


def _alive(liveness: Liveness) -> Handler:
    async def handler(_: Request) -> Reply:
        if lost := liveness.lost():
            message = f"expected every process of this service to live, {lost} died and nothing starts another here: restart the container"
            return json_reply(error_body("process_lost", message), 503)
        return json_reply({"status": "alive"})

    return handler


def _ready(readiness: Readiness) -> Handler:
    async def handler(_: Request) -> Reply:
        if readiness.leaving:
            return json_reply(error_body("shutting_down", "this service is stopping: send new requests to another"), 503)
        ready, expected = readiness.count()
        if ready < expected:
            return json_reply(error_body("not_ready", f"expected {expected} warm workers, {ready} are: wait and ask again"), 503)
        return json_reply({"status": "ready", "workers": ready})

    return handler


def _metrics(metrics: Metrics) -> Handler:
    def scrape() -> tuple[bytes, str]:
        metrics.gpus(gpu.devices())
        return render(metrics.registry)

    async def handler(_: Request) -> Reply:
        text, content_type = await asyncio.to_thread(scrape)
        return Reply(200, text, content_type.encode())

    return handler
