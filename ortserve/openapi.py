"""BentoML's OpenAPI document, completed with what the edge adds: GET paths, raw bodies, query parameters, our errors."""

from __future__ import annotations

import copy
from typing import Any, cast

import attrs
from bentoml._internal.service.openapi.specification import OpenAPISpecification, PathItem

from ortserve.schemas import ErrorBody
from ortserve.v2 import openapi as v2

_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
_JSON = {"application/json": {"schema": {"type": "object"}}}

# Statuses any endpoint that takes a payload can answer with.
_PREDICT_ERRORS = {
    400: "Not a picture, a truncated one, or a body that is not well formed or no JSON",
    408: "The body did not arrive in time",
    413: "Over the limit of bytes, pixels, characters or payloads",
    415: "A media type this endpoint does not read",
    422: "A parameter that is not of its type or in its range, or unknown; a text that is empty or too long",
    429: "The queue is full; Retry-After says when to come back",
    500: "The model failed on this input",
    503: "The service is stopping, or its runner is not there: Retry-After says when to come back",
    504: "The deadline passed",
}
_GET_PATHS = {
    "/models": ("List the served models: version, provider, precision.", {}),
    "/models/{name}": ("One model's facts: manifest, parity report, active provider, precision.", {404: "No such model"}),
    "/livez": ("200 while the process lives.", {503: "A process died that nothing starts again: in a container"}),
    "/readyz": ("200 once every worker is warm and its provider confirmed.", {503: "Not every worker is warm, or no runner is connected"}),
    "/metrics": ("Prometheus metrics of all workers.", {}),
}


def complete(spec: OpenAPISpecification, description: str, version: str, *, metrics: bool = True) -> OpenAPISpecification:
    """The same document with every path the edge answers, each with its shape of error; `description` and `version` stand at its head.

    `metrics`: whether `/metrics` is among those paths.
    """
    written = spec.asdict()
    paths: dict[str, Any] = {path: {"post": _predict(item["post"])} for path, item in written["paths"].items() if "post" in item}
    for path, (summary, errors) in _GET_PATHS.items():
        if metrics or path != "/metrics":
            paths[path] = {"get": _get(path, summary, errors)}
    schemas = {name: schema for name, schema in written["components"]["schemas"].items() if not _superseded(name)}
    error = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= error.pop("$defs") | {"ErrorBody": error} | v2.SCHEMAS
    paths |= v2.PATHS
    return attrs.evolve(
        spec,
        openapi="3.1.0",  # pydantic writes its JSON Schema; BentoML says 3.0, which knows no null
        info=attrs.evolve(spec.info, description=description, contact=None, version=version),
        paths={path: PathItem(**item) for path, item in paths.items()},
        components=cast(Any, {"schemas": schemas}),  # what asdict() wrote goes back as it is
    )


def _superseded(name: str) -> bool:
    """BentoML's own error schemas, and its inputs, which the request bodies repeat in terms that OpenAPI knows."""
    return name in ("InvalidArgument", "NotFound", "InternalServerError", "TaskStatusResponse") or name.endswith("__Input")


def _predict(operation: dict[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(operation["requestBody"]["content"])
    form = content.get("multipart/form-data", {})
    form.pop("encoding", None)  # BentoML's own client writes JSON into text fields; plain text is what every other one sends
    fields = form.get("schema", {}).get("properties", {})
    for media in content.values():
        for schema in media["schema"].get("properties", {}).values():
            if schema.get("default", "") is None:
                del schema["default"]
    if "image" in fields:  # one payload may also be the whole body
        content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    return operation | {
        "requestBody": {"required": True, "content": content},
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema, "description": "The same as the form field."}
            for name, schema in fields.items()
            if "binary" not in (schema.get("format"), schema.get("items", {}).get("format"))
        ],
        "responses": {200: operation["responses"][200]} | _errors(_PREDICT_ERRORS),
    }


def _get(path: str, description: str, errors: dict[int, str]) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}} if path == "/metrics" else _JSON
    operation: dict[str, Any] = {
        "tags": ["Infrastructure"],
        "description": description,
        "responses": {200: {"description": "Successful Response", "content": content}} | _errors(errors),
    }
    if "{name}" in path:
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _errors(errors: dict[int, str]) -> dict[int, Any]:
    return {status: {"description": description, "content": _ERROR} for status, description in errors.items()}
