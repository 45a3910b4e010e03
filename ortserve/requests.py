"""What a request carries: the model it asks, payloads and parameters out of a body, by what the endpoint says it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import ValidationError

from ortserve import body
from ortserve.errors import InvalidParameter, PayloadTooLarge, RequestError, UnsupportedMediaType
from ortserve.profile import Limits
from ortserve.tasks.endpoint import Files, Json, JsonRequest

Payload = Any  # bytes or a view of them where the endpoint takes Files, what its model says where it takes Json, or a RequestError

MAX_FIELDS = 16  # form fields beside the payloads; an endpoint knows a handful
MAX_FIELD_BYTES = 1024  # of the text in one


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read, before it is known which model answers it."""

    model: str | None  # NAME or NAME:VERSION; None where the request names none
    payloads: Sequence[Payload]  # in order; a RequestError where one cannot be
    said: JsonRequest | Mapping[str, str]  # everything else

    def parameters(self, takes: Files | Json) -> Any:
        """What it says of its payloads, checked by the task of the model that answers. Raises InvalidParameter."""
        if isinstance(takes, Files):
            return takes.parameters(cast(Mapping[str, str], self.said))
        if takes.check is not None:
            takes.check(self.said)
        return self.said


def accept(kind: str, takes: Files | Json) -> None:
    """Refuse a media type before a byte of the body is read."""
    if isinstance(takes, Json):
        if kind == "application/json":
            return
        raise UnsupportedMediaType(f"expected a JSON object with Content-Type: application/json, got {kind[:64] or 'no Content-Type'!r}")
    if kind == "multipart/form-data" or (kind.startswith(takes.media_type) and not takes.many):
        return
    raw = "" if takes.many else f", or the bytes as the body with Content-Type: {takes.media_type}..."
    raise UnsupportedMediaType(f"expected multipart/form-data with the field {takes.field!r}{raw}, got {kind[:64] or 'no Content-Type'!r}")


def parse(
    data: bytes, kind: str, options: Mapping[bytes, bytes], query: Sequence[tuple[str, str]], takes: Files | Json, limits: Limits
) -> Asked:
    """The request in that body. Raises RequestError."""
    payloads: Sequence[Payload]
    if isinstance(takes, Json):
        if query:
            raise InvalidParameter(f"expected no query parameters, got {query[0][0][:64]!r}: put it into the JSON object")
        asked = _from_json(data, takes)
        payloads = asked.payloads()
        if len(payloads) > limits.max_texts_per_request:
            raise PayloadTooLarge(
                f"{takes.field}: expected at most {limits.max_texts_per_request} in one request, got {len(payloads)}: send several requests"
            )
        return Asked(asked.model, payloads, asked)
    fields: dict[str, str] = {}
    for name, value in query:
        _add(fields, name, value)
    payloads = [data]
    if kind == "multipart/form-data":
        most = limits.max_images_per_request if takes.many else 1
        parts = body.parse_multipart(data, options.get(b"boundary", b""), max_parts=most + MAX_FIELDS)
        payloads = _files(parts, takes, most, fields)
    return _of_fields(payloads, fields)


def from_fields(takes: Files | Json, fields: Mapping[str, Any]) -> Asked:
    """As `parse`, of a typed call inside this process: files are bytes, or paths that are read here. Raises RequestError, OSError."""
    given = {name: value for name, value in fields.items() if value is not None}
    if isinstance(takes, Json):
        try:
            asked = takes.model.model_validate(given)
        except ValidationError as error:
            raise _fault(error, takes) from None
        return Asked(asked.model, asked.payloads(), asked)
    files = given.pop(takes.field)
    payloads = [file if isinstance(file, bytes) else file.read_bytes() for file in (files if takes.many else [files])]
    return _of_fields(payloads, {name: str(value) for name, value in given.items()})


def _of_fields(payloads: Sequence[Payload], fields: dict[str, str]) -> Asked:
    model = fields.pop("model", None)
    if model and model[0] == model[-1] == '"':
        model = model[1:-1]  # BentoML's own client writes JSON into text fields
    return Asked(model, payloads, fields)


def _from_json(data: bytes, takes: Json) -> JsonRequest:
    """The checked request. Raises RequestError where it is no JSON, InvalidParameter where a field is not as it should be."""
    try:
        return takes.model.model_validate_json(data)
    except ValidationError as error:
        raise _fault(error, takes) from None


def _fault(error: ValidationError, takes: Json) -> RequestError:
    """The first fault of a JSON request, in our words: nothing of what came is repeated but the name of a field."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part)[:64] for part in fault["loc"])
    if fault["type"] == "json_invalid":
        return RequestError("expected a JSON object, got what is no valid JSON: let a JSON library write it")
    if fault["type"] == "extra_forbidden":
        return InvalidParameter(f"unknown field {where!r}: expected some of {', '.join(takes.model.model_fields)}")
    return InvalidParameter(f"{where or 'body'}: {fault['msg']}: see GET /docs.json")


def _add(fields: dict[str, str], name: str, value: str) -> None:
    if name in fields:
        raise InvalidParameter(f"expected {name[:64]!r} once, got it twice: send it as a form field or as a query parameter")
    fields[name] = value


def _files(parts: Sequence[body.Part], takes: Files, most: int, fields: dict[str, str]) -> list[Payload]:
    """The payloads among the parts, or what is wrong with one; the other parts are added to `fields`."""
    payloads: list[Payload] = []
    for part in parts:
        if part.name == takes.field:
            payloads.append(_file(part, takes))
        else:
            _add(fields, part.name, bytes(part.data[:MAX_FIELD_BYTES]).decode("utf-8", "replace"))
    if not payloads:
        raise RequestError(f"expected a file in the form field {takes.field!r}, got none: curl -F {takes.field}=@FILE")
    if len(payloads) > most:
        raise RequestError(f"expected at most {most} in the form field {takes.field!r}, got {len(payloads)}: send several requests")
    return payloads


def _file(part: body.Part, takes: Files) -> Payload:
    if part.filename is None and part.content_type is None:
        return RequestError(
            f"expected {takes.field!r} to carry a file's bytes, got text: upload the file itself (curl -F {takes.field}=@FILE); "
            "addresses and paths are never fetched"
        )
    if part.content_type and not part.content_type.startswith((takes.media_type, "application/octet-stream")):
        return UnsupportedMediaType(
            f"expected {takes.field!r} as {takes.media_type}... or application/octet-stream, got {part.content_type[:64]!r}"
        )
    return part.data
