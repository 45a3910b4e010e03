"""The handlers behind the edge's routes: payloads out of the body, answers out of the model, facts and health."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ortserve import body, requests
from ortserve.choice import Choice
from ortserve.edge import Handler, Request, Route
from ortserve.engine import Engine
from ortserve.errors import NotFound, RequestError, ServingError
from ortserve.liveness import Liveness
from ortserve.metrics import Metrics
from ortserve.model import Answer, ServedModel
from ortserve.page import page
from ortserve.profile import Limits, Profile
from ortserve.readiness import Readiness
from ortserve.replies import Reply, error_body, json_reply, log_failure, server_timing
from ortserve.requests import Asked
from ortserve.tasks.endpoint import Endpoint, Json
from ortserve.v2 import routes as v2_routes

MULTIPART_OVERHEAD_BYTES = 64 * 1024  # boundaries, part headers and form fields around one picture


def build(
    models: Mapping[str, ServedModel],
    choices: Mapping[str, Choice],
    profile: Profile,
    readiness: Readiness,
    liveness: Liveness,
    metrics: Metrics,
) -> list[Route]:
    """Every route of the service: the tasks' endpoints, the models' facts, health, and metrics where they have no port of their own."""
    budget = body.BufferBudget(profile.limits.max_buffered_bytes)
    for path in choices:
        metrics.expect(path)
    return [
        *(Route("POST", path, _predict(choice, profile.limits, budget), choice.gate) for path, choice in choices.items()),
        Route("GET", "/", page(", ".join(models))),
        Route("GET", "/models", _list_models(models, profile)),
        Route("GET", "/models/{name}", _show_model(models, profile)),
        *v2_routes.build(models, profile, readiness, liveness, metrics, budget),
        *health(profile, readiness, liveness, metrics, [served.engine for served in models.values()]),
    ]


def health(profile: Profile, readiness: Readiness, liveness: Liveness, metrics: Metrics, engines: Collection[Engine]) -> list[Route]:
    """What machines ask of every service, also of one that answers nobody else."""
    return [
        Route("GET", "/livez", _alive(liveness)),
        Route("GET", "/readyz", _ready(readiness, engines)),
        *([Route("GET", "/metrics", _metrics(metrics, readiness))] if profile.metrics.port is None else []),
    ]


def _predict(choice: Choice, limits: Limits, budget: body.BufferBudget) -> Handler:
    """A task's endpoint."""
    takes = choice.takes
    if isinstance(takes, Json):
        limit_bytes = limits.max_json_bytes
    else:
        limit_bytes = limits.max_request_bytes if takes.many else limits.max_image_bytes + MULTIPART_OVERHEAD_BYTES

    async def handler(request: Request) -> Reply:
        try:
            kind, options = body.media_type(request.headers)
            requests.accept(kind, takes)
            data = await body.read(
                request.receive, request.headers, limit_bytes=limit_bytes, timeout_s=limits.body_timeout_ms / 1000, budget=budget
            )
        finally:
            choice.came()
        try:
            choice.expect_room()
            asked = requests.parse(data, kind, options, request.query(), takes, limits)
            value, answers = await body.unless_gone(request.receive, respond(choice, asked))
            if len(answers) != 1 or not isinstance(answer := answers[0], Answer):
                return json_reply(value)
            stages = _stages(answer)
            if request.span is not None:
                request.span.record_stages(stages)
            return json_reply(value, headers=[server_timing(stages)])
        finally:
            budget.give_back(len(data))

    return handler


async def respond(choice: Choice, asked: Asked) -> tuple[Any, Sequence[Answer | RequestError | ServingError]]:
    """The JSON of an endpoint's answer, and where the time of each payload's answer went.

    Raises InvalidParameter where no model is meant or it cannot do what is asked, what ServedModel.predict raises, and the first error of
    a payload where the endpoint does not answer each on its own.
    """
    offer = choice.of(asked.model)
    served, endpoint, payloads = offer.served, offer.endpoint, asked.payloads
    parameters = asked.parameters(endpoint.takes)
    if not endpoint.each_its_own:
        for index, payload in enumerate(payloads):
            _raise(payload, endpoint, index, len(payloads))
    answers = await served.predict(payloads, parameters)
    values = []
    for index, answer in enumerate(answers):
        if isinstance(answer, Answer):
            values.append(answer.value)
            continue
        if not endpoint.each_its_own:
            _raise(answer, endpoint, index, len(answers))
        log_failure(endpoint.path, answer)
        values.append(error_body(answer.code, str(answer)))
    return endpoint.render(served.name, served.version, values), answers


def _raise(error: Any, endpoint: Endpoint, index: int, count: int) -> None:
    """Raise it if it is an error; the sender of several payloads is told which one it was."""
    if isinstance(error, RequestError) and count > 1:
        raise type(error)(f"{endpoint.takes.field}[{index}]: {error}") from error
    if isinstance(error, RequestError | ServingError):
        raise error


def _stages(answer: Answer) -> dict[str, float]:
    """Where the time went, stage by stage, in seconds."""
    return {"decode": answer.decode_s, "queue": answer.queue_s, "inference": answer.inference_s}


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
        if request.path_values["name"] not in models:
            raise NotFound(f"no such model: this service has {', '.join(models)}")
        return json_reply({"profile": profile.name, **models[request.path_values["name"]].facts()})

    return handler


def _alive(liveness: Liveness) -> Handler:
    async def handler(_: Request) -> Reply:
        if lost := liveness.lost():
            message = f"expected every process of this service to live, {lost} died and nothing starts another here: restart the container"
            return json_reply(error_body("process_lost", message), 503)
        return json_reply({"status": "alive"})

    return handler


def _ready(readiness: Readiness, engines: Collection[Engine]) -> Handler:
    async def handler(_: Request) -> Reply:
        if (reason := readiness.lacking(engines)) is not None:
            return json_reply(error_body(*reason), 503)
        return json_reply({"status": "ready", "workers": readiness.count()[0]})

    return handler


def _metrics(metrics: Metrics, readiness: Readiness) -> Handler:
    async def handler(_: Request) -> Reply:
        text, content_type = await asyncio.to_thread(metrics.scrape, readiness)
        return Reply(200, text, content_type.encode())

    return handler
