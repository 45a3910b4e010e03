"""Names: of a model, and of its classes."""

from __future__ import annotations

import re
from pathlib import Path

from ortserve.errors import SourceError


def model_name(text: str) -> str:
    """A name BentoML takes, nearest to `text`: lower case letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-") or "model"


def matching(labels: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    """The labels, one for each class; `class_0`, `class_1`, ... where none are known."""
    if labels is None:
        return tuple(f"class_{index}" for index in range(classes))
    if len(labels) != classes:
        raise SourceError(f"expected {classes} labels, one for each class the model answers, got {len(labels)}: mend --labels")
    return labels


def read_labels(path: Path | None) -> tuple[str, ...] | None:
    """The lines of a labels file in order; None where no file was given."""
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"--labels {path} cannot be read ({error}): expected a text file in UTF-8, one label per line") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise SourceError(f"--labels {path}: line {empty[0]} is empty: expected one label per line, in the order of the classes")
    return tuple(line.strip() for line in lines)
