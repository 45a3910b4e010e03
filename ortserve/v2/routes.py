"""The protocol's paths over REST."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from ortserve import __version__, body
from ortserve.edge import Handler, Request, Route
from ortserve.errors import NotFound, PayloadTooLarge, RequestError, UnsupportedMediaType
from ortserve.replies import Reply, json_reply, server_timing, v2_error_body
from ortserve.v2 import documents, inference, request_reader, response_writer
from ortserve.v2.inference import Checked
from ortserve.v2.statistics import statistics

if TYPE_CHECKING:
    from ortserve.liveness import Liveness
    from ortserve.metrics import Metrics
    from ortserve.model import ServedModel
    from ortserve.profile import Limits, Profile
    from ortserve.readiness import Readiness

Models = Mapping[str, "ServedModel"]

MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
INDEX_BYTES = 1024  # of the index's request, which is one flag
# JSON of more, or tensors of more, would hold the event loop up for longer than a hop to a thread costs (0.1 ms).
JSON_ASIDE_BYTES = 16 * 1024
TENSORS_ASIDE_BYTES = 1024 * 1024  # only joined or, where they lie askew, copied: 0.1 ms


def build(
    models: Models, profile: Profile, readiness: Readiness, liveness: Liveness, metrics: Metrics, budget: body.BufferBudget
) -> list[Route]:
    """Every path of the protocol, for every model."""
    service = _Service(models, profile.limits, readiness, liveness, metrics, budget)
    for model in MODEL:
        metrics.expect(f"{model}/infer")
    of_one = (("GET", "", _metadata), ("GET", "/config", _config), ("GET", "/ready", _model_ready), ("GET", "/stats", _model_stats))
    return [
        Route("GET", "/v2", service.metadata),
        Route("GET", "/v2/", service.metadata),  # as the protocol's OpenAPI document has it
        Route("GET", "/v2/health/live", service.live),
        Route("GET", "/v2/health/ready", service.ready),
        Route("GET", "/v2/models/stats", service.statistics),
        *(Route(method, model + rest, service.of_model(handler)) for model in MODEL for method, rest, handler in of_one),
        *(Route("POST", f"{model}/infer", service.of_model(_infer), service.gate) for model in MODEL),
        Route("POST", "/v2/repository/index", service.index),
        *(Route("POST", f"/v2/repository/models/{{name}}/{what}", _not_offered) for what in ("load", "unload")),
    ]


class _Service:
    """What the handlers share."""

    def __init__(
        self,
        models: Models,
        limits: Limits,
        readiness: Readiness,
        liveness: Liveness,
        metrics: Metrics,
        budget: body.BufferBudget,
    ) -> None:
        self.models = models
        self.limits = limits
        self.budget = budget
        self._readiness = readiness
        self._liveness = liveness
        self._metrics = metrics

    def of_model(self, handler: Callable[[_Service, ServedModel, Request], Awaitable[Reply]]) -> Handler:
        """A handler of the model and version that the path names."""

        async def found(request: Request) -> Reply:
            return await handler(self, self._named(request.path_values), request)

        return found

    def gate(self, path_values: Mapping[str, str]) -> ServedModel | None:
        """The model and version that the path names; None where there is none, which the handler says."""
        try:
            return self._named(path_values)
        except NotFound:
            return None

    def _named(self, path_values: Mapping[str, str]) -> ServedModel:
        name, version = path_values["name"], path_values.get("version")
        served = self.models.get(name)
        if served is None:
            raise NotFound(f"no such model: this service has {', '.join(self.models)}")
        if version not in (None, served.version):
            raise NotFound(f"no such version of {name}: this service has {served.version}")
        return served

    async def read(self, request: Request, limit_bytes: int) -> bytes:
        """The body, counted in the budget until it is given back."""
        timeout_s = self.limits.body_timeout_ms / 1000
        return await body.read(request.receive, request.headers, limit_bytes=limit_bytes, timeout_s=timeout_s, budget=self.budget)

    def lacking(self, wanted: Sequence[ServedModel]) -> str | None:
        """Why those models do not all answer now; None where they do."""
        reason = self._readiness.lacking([served.engine for served in wanted])
        return None if reason is None else reason[1]

    async def measured(self, wanted: Sequence[ServedModel]) -> Reply:
        """The statistics of those models."""
        families = await asyncio.to_thread(self._metrics.collect)
        return json_reply(statistics(families, wanted))

    async def metadata(self, _: Request) -> Reply:
        """`GET /v2`."""
        return json_reply(documents.server(__version__))

    async def live(self, _: Request) -> Reply:
        """`GET /v2/health/live`."""
        if lost := self._liveness.lost():
            return _unready(f"expected every process of this service to live, {lost} died and nothing starts another here")
        return json_reply({"live": True})

    async def ready(self, _: Request) -> Reply:
        """`GET /v2/health/ready`."""
        reason = self.lacking(list(self.models.values()))
        return json_reply({"ready": True}) if reason is None else _unready(reason)

    async def statistics(self, _: Request) -> Reply:
        """`GET /v2/models/stats`."""
        return await self.measured(list(self.models.values()))

    async def index(self, request: Request) -> Reply:
        """`POST /v2/repository/index`."""
        data = await self.read(request, INDEX_BYTES)
        self.budget.give_back(len(data))
        return json_reply(documents.index(self.models, ready=self._readiness.lacking() is None, only_ready=_only_ready(data)))


def _only_ready(data: bytes) -> bool:
    """The one flag of the index's request; its body may be empty."""
    try:
        said: Any = orjson.loads(data) if data else {}
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("ready", False), bool):
        raise RequestError('expected nothing or a JSON object like {"ready": true}')
    return bool(said.get("ready", False))


async def _not_offered(_: Request) -> Reply:
    raise RequestError("models are neither loaded nor unloaded while the service runs: its start says which it serves")


def _unready(reason: str) -> Reply:
    return json_reply(v2_error_body("not_ready", reason), 503)


async def _metadata(_: _Service, served: ServedModel, __: Request) -> Reply:
    return json_reply(documents.metadata(served))


async def _config(_: _Service, served: ServedModel, __: Request) -> Reply:
    return json_reply(documents.configuration(served))


async def _model_ready(service: _Service, served: ServedModel, _: Request) -> Reply:
    reason = service.lacking([served])
    return json_reply({"name": served.name, "ready": True}) if reason is None else _unready(reason)


async def _model_stats(service: _Service, served: ServedModel, _: Request) -> Reply:
    return await service.measured([served])


async def _infer(service: _Service, served: ServedModel, request: Request) -> Reply:
    try:
        json_bytes = _json_bytes(request.headers, service.limits)
        if request.headers.get(b"content-encoding", b"identity") not in (b"identity", b""):
            raise UnsupportedMediaType("expected a body without Content-Encoding, got a compressed one: send it as it is")
        limits = service.limits
        data = await (_read_json(service, request) if json_bytes is None else service.read(request, limits.max_request_bytes))
    finally:
        served.came()
    try:
        checked, decode_s = await _read(served, data, json_bytes)
        response = await body.unless_gone(request.receive, inference.infer(served, checked))
    finally:
        service.budget.give_back(len(data))
    aside = response_writer.size(response) > JSON_ASIDE_BYTES
    reply = await served.aside(response_writer.write, response) if aside else response_writer.write(response)
    stages = {"decode": decode_s, "queue": response.queue_s, "inference": response.inference_s}
    if request.span is not None:
        request.span.record_stages(stages)
    reply.headers.append(server_timing(stages))
    return reply


async def _read_json(service: _Service, request: Request) -> bytes:
    """A body that is JSON alone. Raises PayloadTooLarge, with the remedy that there is for numbers."""
    limit_bytes = service.limits.max_json_bytes
    try:
        return await service.read(request, limit_bytes)
    except PayloadTooLarge:
        raise _too_much_json(limit_bytes) from None


def _too_much_json(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"expected at most {limit_bytes} bytes of JSON, got more: send tensors as binary data")


def _json_bytes(headers: Mapping[bytes, bytes], limits: Limits) -> int | None:
    """How many bytes of the body are JSON, by the sender's word; None where all are. 0: the body is one tensor, and no JSON."""
    said = headers.get(response_writer.HEADER)
    if said is None:
        return None
    if not said.isdigit() or len(said) > 18:
        raise RequestError("expected a number of bytes in the header Inference-Header-Content-Length")
    if int(said) > limits.max_json_bytes:
        raise _too_much_json(limits.max_json_bytes)
    return int(said)


async def _read(served: ServedModel, data: bytes, json_bytes: int | None) -> tuple[Checked, float]:
    """The request, checked, and how long that took. Raises RequestError."""
    length = len(data) if json_bytes is None else json_bytes
    if length > len(data):
        raise RequestError(f"expected {length} bytes of JSON by the header Inference-Header-Content-Length, got a body of {len(data)}")

    def read(whole: bytes) -> Checked:
        raw = json_bytes == 0
        return inference.check(
            served, request_reader.read_raw(whole, served.manifest.inputs) if raw else request_reader.read(whole, length)
        )

    started = time.perf_counter()
    aside = length > JSON_ASIDE_BYTES or len(data) > TENSORS_ASIDE_BYTES
    try:
        checked = await served.aside(read, data) if aside else read(data)
    except RequestError as error:
        served.unusable(error)
        raise
    seconds = time.perf_counter() - started
    served.parsed(seconds)
    return checked, seconds
