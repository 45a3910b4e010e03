"""Request parameters as text to checked values, by the same rules for every task."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from ortserve.errors import InvalidParameter

# Plain ASCII decimals: int() would also take "+5", " 5", "1_0" and digits of any script.
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,17}")
# 0.25, .25, 1, 1.0 and what Python writes for a small one: 1e-05.
_FRACTION = re.compile(r"[01](\.[0-9]{1,18})?|\.[0-9]{1,18}|[1-9](\.[0-9]{1,18})?e-[0-9]{1,2}")


def refuse_unknown(fields: Mapping[str, str], known: Iterable[str]) -> None:
    """Nothing, where every field is known. Raises InvalidParameter, naming the nearest known one."""
    names = sorted(known)
    for field in fields:
        if field not in names:
            near = difflib.get_close_matches(field[:40], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected {'one of ' if len(names) > 1 else ''}{', '.join(names)}"
            raise InvalidParameter(f"unknown parameter {_quoted(field)}: {hint}")


def whole_number(fields: Mapping[str, str], name: str, *, lowest: int, highest: int, default: int) -> int:
    """The field's value, or `default` where it is not given. Raises InvalidParameter for anything but a decimal in range."""
    text = fields.get(name)
    if text is None:
        return default
    if _DECIMAL.fullmatch(text) is None or not lowest <= int(text) <= highest:
        raise InvalidParameter(f"{name}: expected a whole number from {lowest} to {highest}, got {_quoted(text)}")
    return int(text)


def fraction(fields: Mapping[str, str], name: str, *, default: float) -> float:
    """The field's value, or `default` where it is not given. Raises InvalidParameter for anything but a plain decimal from 0 to 1."""
    text = fields.get(name)
    if text is None:
        return default
    if _FRACTION.fullmatch(text) is None or not 0.0 <= float(text) <= 1.0:
        raise InvalidParameter(f"{name}: expected a number from 0 to 1, as in {default}, got {_quoted(text)}")
    return float(text)


def named(fields: Mapping[str, str], name: str, labels: Sequence[str]) -> frozenset[int] | None:
    """Indices of the labels that the field names, by name or by index, separated by commas; None where it is not given.

    A label that itself holds a comma, or is a number, is named by its index. Raises InvalidParameter, naming the nearest label.
    """
    text = fields.get(name)
    if text is None:
        return None
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]  # BentoML's own client writes JSON into text fields
    index = {label: place for place, label in enumerate(labels)}
    chosen = set()
    for part in (part.strip() for part in text.split(",")):
        if _DECIMAL.fullmatch(part) and int(part) < len(labels):
            chosen.add(int(part))
        elif part in index and _DECIMAL.fullmatch(part) is None:
            chosen.add(index[part])
        else:
            near = difflib.get_close_matches(part[:40], labels, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected labels or numbers from 0 to {len(labels) - 1}, separated by commas"
            raise InvalidParameter(f"{name}: the model knows no class {_quoted(part)}: {hint}")
    return frozenset(chosen)


def _quoted(text: str) -> str:
    """What the caller sent, in ASCII and at most 40 characters of it."""
    return ascii(text) if len(text) <= 40 else f"{text[:40]!a} and {len(text) - 40} characters more"
