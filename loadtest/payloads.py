"""What is sent: pictures of a folder, lines of a file."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
}
# From four tokens to some hundred: what a search box, a review and a paragraph look like.
TEXTS = (
    "where is my parcel",
    "The battery lasts two days and the screen is bright, but the case scratches easily.",
    "A small team packaged its model, measured it beside the others, and found that most of the time went into waiting: for the next "
    "batch, for a lock, for a thread that had nothing to do. They took the waiting out, measured again, and wrote down what each step "
    "had gained, so that whoever came after them would not have to guess.",
)
Value = TypeVar("Value")


def read_pictures(folder: Path) -> list[tuple[str, bytes, str]]:
    """(name, bytes, media type) of each picture below the folder. Raises ValueError where there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA_TYPES)
    if not files:
        raise ValueError(f"expected pictures ({', '.join(MEDIA_TYPES)}) in {folder}, found none: name a folder with --pictures")
    return [(path.name, path.read_bytes(), MEDIA_TYPES[path.suffix.lower()]) for path in files]


def read_texts(file: str | None) -> list[str]:
    """The lines of the file that say something. Raises ValueError where there is none."""
    if not file:
        return list(TEXTS)
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"expected texts in {file}, one a line, found none: name another file with --texts")
    return lines


def from_anywhere(values: Sequence[Value]) -> Iterator[Value]:
    """The values round and round, from a random one on."""
    start = random.randrange(len(values))
    return itertools.cycle([*values[start:], *values[:start]])
