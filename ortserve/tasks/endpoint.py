"""What a task tells the edge of its HTTP paths: what a request carries, and what its answer looks like. Data only: the edge parses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Files:
    """Each payload is a file's bytes: a part of a multipart body, or the whole body where there can be only one."""

    field: str  # the multipart field that carries a payload: "image"
    media_type: str  # what media types of payloads begin with: "image/"
    parameters: Callable[[Mapping[str, str]], Any]  # form fields and query parameters, checked. Raises InvalidParameter
    many: bool = False


class JsonRequest(BaseModel):
    """A request that is a JSON object: its fields, checked. It is itself the parameters of its payloads."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str | None = None  # which of several models is asked, by NAME or NAME:VERSION

    def payloads(self) -> Sequence[Any]:
        """What is to be answered, each a row of its own."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Json:
    """The payloads are in a JSON object. A fault in it is answered with 422 and the place where it is."""

    model: type[JsonRequest]
    field: str  # the one that carries the payloads: "inputs"
    check: Callable[[Any], None] | None = None  # what only the model's own task knows of a request. Raises InvalidParameter


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path a task answers by POST.

    `render` makes the answer of (model, version, values), the values in the payloads' order: what JSON can hold, and arrays of numbers.
    """

    path: str  # "/classify"
    takes: Files | Json
    render: Callable[[str, str, Sequence[Any]], Any]
    each_its_own: bool = False  # an error stands in its payload's place among the values; else the first one is the whole request's


def single(key: str) -> Callable[[str, str, Sequence[Any]], Any]:
    """Renders `{"model", "version", KEY: the one value}`."""
    return lambda model, version, values: {"model": model, "version": version, key: values[0]}


def results(key: str) -> Callable[[str, str, Sequence[Any]], Any]:
    """Renders `{"model", "version", "results": [{KEY: value} or {"error"}]}`, for endpoints whose payloads have errors of their own."""

    def render(model: str, version: str, values: Sequence[Any]) -> Any:
        return {"model": model, "version": version, "results": [value if _is_error(value) else {key: value} for value in values]}

    return render


def _is_error(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"error"}
