"""The profile that is written at the end: every key with what was measured of its values beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from ortserve.tune.candidate import Data, leaves
from ortserve.tune.objective import Figures, Goal
from ortserve.tune.results import Contender, Trial, longest

MOST_VALUES = 4  # of one key beside it, the best first


def profile_text(best: Contender, contenders: Sequence[Contender], made: Sequence[Trial], goal: Goal, about: Sequence[str]) -> str:
    """The YAML file of the winner. `about` are the lines of its head: what was measured, where, when."""
    comments = _comments(best.candidate.data, made, goal)
    head = [
        *about,
        "",
        f"In turns, medians of {len(best.rounds)} rounds; {goal.objective}'s own profile stays unless another is ahead of it in every one:",
        *(f"  {one.candidate.label}: {one.middle.text()}{'  <- this profile' if one is best else ''}" for one in contenders),
        "",
        "Beside each key: what the best trial with each of its values did. The others were left as they are shipped.",
    ]
    data = {**best.candidate.data, "description": f"Tuned for {goal.objective} on this machine: {best.candidate.label}."}
    lines = [f"# {line}".rstrip() for line in head]
    return "\n".join([*lines, *_lines(data, comments), ""])


def _comments(data: Data, made: Sequence[Trial], goal: Goal) -> dict[str, str]:
    """Dotted key -> what was measured of its values."""
    values = [(dict(leaves(trial.data)), trial.figures) for trial in longest(made) if trial.figures is not None]
    searched = [dict(leaves(trial.data)) for trial in made if trial.shipped in ("", goal.objective)]
    comments = {}
    for key, chosen in leaves(data):
        if len({_flow(found.get(key)) for found in searched}) < 2:
            comments[key] = "not searched"
            continue
        by_value: dict[str, Figures] = {}
        for found, figures in values:
            if key not in found:
                continue
            text = _flow(found[key])
            if text not in by_value or goal.rank(figures) < goal.rank(by_value[text]):
                by_value[text] = figures
        ranked = sorted(by_value, key=lambda text: goal.rank(by_value[text]))
        shown = [text for text in ranked if text != _flow(chosen)][: MOST_VALUES - 1]
        own = [_flow(chosen)] if _flow(chosen) in by_value else []
        comments[key] = "; ".join(f"{text}: {_short(by_value[text])}" for text in [*own, *shown])
    return comments


def _short(figures: Figures) -> str:
    return f"{figures.requests_per_s:.1f}/s, p99 {figures.p99_ms:.1f} ms"


def _lines(data: Mapping[str, Any], comments: Mapping[str, str], prefix: str = "", indent: str = "") -> Iterator[str]:
    for key, value in data.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, comments, path, indent + "  ")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            yield f"{indent}{key}:"
            for index, item in enumerate(value):
                inner = list(_lines(item, comments, f"{path}.{index}", indent + "    "))
                yield f"{indent}  - {inner[0].lstrip()}"
                yield from inner[1:]
        else:
            comment = comments.get(path, "")
            yield f"{indent}{key}: {_flow(value)}" + (f" # {comment}" if comment and path != "description" else "")


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str) and yaml.safe_load(value) == value and ": " not in value and " #" not in value:
        return value
    if isinstance(value, str | list | dict):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _collection(value)
    return yaml.safe_dump(value).removesuffix("\n").removesuffix("\n...")


def _collection(value: list[Any] | dict[str, Any]) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1 << 20, sort_keys=False).strip()
