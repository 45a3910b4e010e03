"""One way of running: the data of a profile's YAML file, and changes laid over it. New keys of the schema pass through untouched."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml
from pydantic import ValidationError

from ortserve.profile import Profile

Data = dict[str, Any]
Change = Mapping[str, Any]  # dotted key -> value; "execution.0.batching.max_batch_size": a number is an index into a list


@dataclass(frozen=True)
class Candidate:
    """A profile to measure. Two with the same data are the same, whatever they are called."""

    label: str
    data: Data
    shipped: str = ""  # the shipped profile's name, where it is one as it comes

    @cached_property
    def id(self) -> str:
        """Of what the profile means, alone: a value written out is the same as a default."""
        try:
            meant = Profile.model_validate({**self.data, "name": "", "description": ""}).model_dump(mode="json")
        except ValidationError:  # the service will say so
            meant = self.data
        return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()[:10]

    def yaml(self) -> str:
        """The profile as a file's text."""
        return yaml.safe_dump(self.data, sort_keys=False, allow_unicode=True)


def changed(data: Data, change: Change) -> Data:
    """A copy of the data with the change laid over it; sections that are not there are made."""
    result = copy.deepcopy(data)
    for key, value in change.items():
        *sections, last = key.split(".")
        place: Any = result
        for section in sections:
            place = place[int(section)] if isinstance(place, list) else place.setdefault(section, {})
        place[last] = value
    return result


def leaves(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key and its value. A list of sections is walked through, any other list is a value."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(data, list) and data and all(isinstance(item, Mapping) for item in data):
        for index, item in enumerate(data):
            yield from leaves(item, f"{prefix}.{index}")
    else:
        yield prefix, data
