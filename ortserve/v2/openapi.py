"""The protocol's paths as an OpenAPI document describes them. Data only: `ortserve.openapi` puts them beside the others."""

from __future__ import annotations

from typing import Any

_STRING: dict[str, Any] = {"type": "string"}
_BOOLEAN: dict[str, Any] = {"type": "boolean"}
_INTEGER: dict[str, Any] = {"type": "integer"}
_PARAMETERS: dict[str, Any] = {"type": "object", "description": "Ones that are not known are left aside."}
_DATATYPE: dict[str, Any] = {
    "type": "string",
    "enum": ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"],
    "description": "FP16 as binary data only; BYTES in answers only, for classes.",
}
_DATA: dict[str, Any] = {"type": "array", "items": {}, "description": "Elements in row-major order, flat or nested as the shape is."}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_SHAPE = _list({"type": "integer", "minimum": 1}, minItems=1, maxItems=8)
_SIGNED_SHAPE = _list(_INTEGER, description="-1 is a free dimension; the first is the rows of a request.")
_DURATION = _object("count ns", count=_INTEGER, ns=_INTEGER)

SCHEMAS: dict[str, Any] = {
    "V2Error": _object("error", error={"type": "string", "description": "What was expected, what came, and the remedy."}),
    "V2Server": _object("name version extensions", name=_STRING, version=_STRING, extensions=_list(_STRING)),
    "V2TensorMetadata": _object("name datatype shape", name=_STRING, datatype=_DATATYPE, shape=_SIGNED_SHAPE),
    "V2Model": _object(
        "name versions platform inputs outputs",
        name=_STRING,
        versions=_list(_STRING),
        platform=_STRING,
        inputs=_list(_ref("V2TensorMetadata")),
        outputs=_list(_ref("V2TensorMetadata")),
    ),
    "V2InputTensor": _object("name shape datatype", name=_STRING, shape=_SHAPE, datatype=_DATATYPE, parameters=_PARAMETERS, data=_DATA),
    "V2RequestedOutput": _object("name", name=_STRING, parameters=_PARAMETERS),
    "V2InferRequest": _object(
        "inputs",
        id=_STRING,
        parameters=_PARAMETERS,
        inputs=_list(_ref("V2InputTensor"), minItems=1, maxItems=64),
        outputs=_list(_ref("V2RequestedOutput"), maxItems=64),
    ),
    "V2OutputTensor": _object("name shape datatype", name=_STRING, shape=_SHAPE, datatype=_DATATYPE, parameters=_PARAMETERS, data=_DATA),
    "V2InferResponse": _object(
        "model_name model_version outputs", model_name=_STRING, model_version=_STRING, id=_STRING, outputs=_list(_ref("V2OutputTensor"))
    ),
    "V2Statistics": _object(
        "model_stats",
        model_stats=_list(
            _object(
                "name version inference_count execution_count inference_stats batch_stats",
                name=_STRING,
                version=_STRING,
                last_inference=_INTEGER,
                inference_count=_INTEGER,
                execution_count=_INTEGER,
                inference_stats={"type": "object", "additionalProperties": _DURATION},
                batch_stats=_list({"type": "object"}),
            )
        ),
    ),
    "V2Index": _list(_object("name version state reason", name=_STRING, version=_STRING, state=_STRING, reason=_STRING)),
}

_NOT_FOUND = {404: "No such model or version"}
_NOT_READY = {503: "Not every worker is warm, or no runner is connected"}
_BODY = {
    400: "Not what the protocol asks for, or not what the model takes",
    408: "The body did not arrive in time",
    413: "Over the limit of bytes, or more rows than the queue holds",
    429: "The queue is full; Retry-After says when to come back",
}
_INFER = _BODY | {
    415: "A body with a Content-Encoding",
    500: "The model failed on this input",
    503: "The service is stopping, or its runner is not there: Retry-After says when to come back",
    504: "The deadline passed",
}
_TENSORS = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _operation(description: str, answer: dict[str, Any], errors: dict[int, str], body: dict[str, Any] | None = None) -> dict[str, Any]:
    error = {"application/json": {"schema": _ref("V2Error")}}
    return {
        "tags": ["Open Inference Protocol v2"],
        "description": description,
        **({} if body is None else {"requestBody": body}),
        "responses": {
            200: {"description": "Successful Response", "content": answer},
            **{status: {"description": reason, "content": error} for status, reason in errors.items()},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _named(path: str, operation: dict[str, Any]) -> dict[str, Any]:
    """The operation with the parameters that its path has."""
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    return operation | {"parameters": [{"name": name, "in": "path", "required": True, "schema": _STRING} for name in names]}


_READY = _json({"type": "object"})
_OF_MODEL: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("get", _operation("A model's inputs and outputs.", _json(_ref("V2Model")), _NOT_FOUND)),
    "/ready": ("get", _operation("200 while the model answers.", _READY, _NOT_FOUND | _NOT_READY)),
    "/config": ("get", _operation("A model's configuration in Triton's words.", _json({"type": "object"}), _NOT_FOUND)),
    "/stats": ("get", _operation("A model's statistics in Triton's words, of all workers.", _json(_ref("V2Statistics")), _NOT_FOUND)),
    "/infer": (
        "post",
        _operation(
            "Tensors in, tensors out. As JSON, or as JSON and bytes behind it: the header Inference-Header-Content-Length then says how "
            "long the JSON is, `parameters.binary_data_size` how long each tensor.",
            _json(_ref("V2InferResponse")) | _TENSORS,
            _NOT_FOUND | _INFER,
            {"required": True, "content": _json(_ref("V2InferRequest")) | _TENSORS},
        ),
    ),
}
_LOADING = "Answered with an error: a service keeps the models it was started with."

PATHS: dict[str, Any] = {
    "/v2": {"get": _operation("The server and the extensions it knows.", _json(_ref("V2Server")), {})},
    "/v2/health/live": {"get": _operation("200 while the process lives.", _READY, {503: "A process died that nothing starts again"})},
    "/v2/health/ready": {"get": _operation("200 once every worker is warm and every model answers.", _READY, _NOT_READY)},
    "/v2/models/stats": {"get": _operation("Every model's statistics.", _json(_ref("V2Statistics")), {})},
    **{
        path: {method: _named(path, operation)}
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        for rest, (method, operation) in _OF_MODEL.items()
        for path in [model + rest]
    },
    "/v2/repository/index": {
        "post": _operation(
            "Every model, or with `ready` those that answer.",
            _json(_ref("V2Index")),
            _BODY,
            {"required": False, "content": _json(_object("", ready=_BOOLEAN))},
        )
    },
    **{
        path: {"post": _named(path, _operation(_LOADING, _READY, {400: "Always"}))}
        for what in ("load", "unload")
        for path in [f"/v2/repository/models/{{name}}/{what}"]
    },
}
