"""A profile out of its file: `load("default")` takes a shipped one, `load("path/to/mine.yaml")` a file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ortserve.errors import ProfileError
from ortserve.profile import Profile

SHIPPED = Path(__file__).resolve().parent.parent / "profiles"


def shipped_names() -> tuple[str, ...]:
    """Names of the profiles that come with the project."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load(reference: str) -> Profile:
    """The profile of that shipped name, or of that file (anything with a slash or ending in .yaml or .yml).

    Raises ProfileError where it cannot be found, read or believed; the message names the file, the key and the nearest valid one.
    """
    is_file = "/" in reference or reference.endswith((".yaml", ".yml"))
    path = Path(reference).expanduser() if is_file else SHIPPED / f"{reference}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_file and not path.is_absolute():  # BentoML has changed to the service's folder, wherever the command was given
            raise ProfileError(f"profile {reference!r} not found in {Path.cwd()}, the service's folder: give its absolute path") from None
        raise ProfileError(
            f"profile {reference!r} not found: expected one of {', '.join(shipped_names())}, or the path of a .yaml file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {reference!r} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ProfileError(f"profile {path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ProfileError(f"profile {path.name}: expected a mapping of keys to values, got {type(data).__name__}")
    try:
        return Profile.model_validate({**data, "name": path.stem} if "name" not in data else data)
    except ValidationError as error:
        raise ProfileError(f"profile {path.name}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first fault of a profile in one line: the key, what is wrong, and the nearest valid key where one was mistyped."""
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])  # a mistyped key is also one that is missing
    location, section = _located(fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = sorted(section.model_fields)
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        return f"unknown key {location!r}: {hint}"
    if fault["type"] == "missing":
        return f"key {location!r} is missing"
    # A value that may be one thing or another has a fault for each.
    said = " or ".join(dict.fromkeys(str(other["msg"]) for other in faults if _located(other["loc"])[0] == location))
    return f"{location}: {said}, got {fault['input']!r}" if location else said


def _located(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """The key as the file has it, without the type that pydantic tried its value as; and the section that the key stands in."""
    section: type[BaseModel] = Profile
    within: Any = Profile  # what the next part is a key of
    keys: list[str] = []
    for part in loc:
        if isinstance(part, str):
            if (found := _section_of(within)) is not None:
                section, field = found, found.model_fields.get(part)
                within = field.annotation if field else None
            elif get_origin(within) is dict:
                within = None
            else:
                break
        keys.append(str(part))
    return ".".join(keys), section


def _section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
