"""The models of the service under load: which there are, and what each takes."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from locust.env import Environment

from loadtest import tensors


def ask(environment: Environment, path: str) -> Any:
    """The JSON that the service answers there."""
    with urllib.request.urlopen(f"{environment.host}{path}", timeout=30) as answer:
        return json.load(answer)


def names_by_task(models: list[dict[str, str]]) -> Mapping[str, list[str]]:
    """task -> the names of its models, from what `GET /models` lists."""
    found: dict[str, list[str]] = {}
    for model in models:
        found.setdefault(model["task"], []).append(model["name"])
    return found


def rows_by_name(environment: Environment) -> Mapping[str, tuple[tensors.Request, tensors.Request]]:
    """name -> a row for that model as `/v2` takes it, in JSON and in bytes."""
    names = [name for names in environment.models.values() for name in names]  # type: ignore[attr-defined]
    inputs = {name: ask(environment, f"/v2/models/{quote(name)}")["inputs"] for name in names}
    return {name: (tensors.as_json(of_one), tensors.as_bytes(of_one)) for name, of_one in inputs.items()}
