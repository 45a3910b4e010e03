"""What is sent to a model while it is tuned, by its task, and what of an answer must not change from one way of running to another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.payloads import read_pictures, read_texts
from ortserve.errors import TuneError

BOUNDARY = "----ortserve-tune"
SAME_DIRECTION = 0.98  # cosine of two embeddings of one text that mean the same; an int8 file's are between 0.98 and 1
MOST_FILES = 256  # sent in turn, held in memory by the load's process


@dataclass(frozen=True, slots=True)
class Kind:
    """A task's main endpoint: a picture, or a text as JSON. `same` compares two answers to one payload."""

    path: str
    takes: str  # "picture" or "text"
    gist: Callable[[Any], Any]  # of an answer's JSON: what is kept for comparing
    same: Callable[[Any, Any], bool]


def _direction(one: Sequence[float], other: Sequence[float]) -> bool:
    lengths = math.sqrt(sum(value * value for value in one) * sum(value * value for value in other))
    product = sum(a * b for a, b in zip(one, other, strict=False))
    return len(one) == len(other) and product >= SAME_DIRECTION * lengths


KINDS: Mapping[str, Kind] = {
    "image-classification": Kind("/classify", "picture", lambda answer: answer["predictions"][0]["label"], lambda a, b: bool(a == b)),
    "object-detection": Kind(
        "/detect", "picture", lambda answer: sorted(found["label"] for found in answer["detections"]), lambda a, b: bool(a == b)
    ),
    "feature-extraction": Kind("/embed", "text", lambda answer: answer["embeddings"][0], _direction),
    "text-classification": Kind(
        "/classify_text", "text", lambda answer: answer["results"][0]["predictions"][0]["label"], lambda a, b: bool(a == b)
    ),
}


def kind_of(task: str) -> Kind:
    """How a task is asked. Raises TuneError for one that is not known here."""
    if task not in KINDS:
        raise TuneError(f"the model's task is {task!r}, expected one of {', '.join(KINDS)}: add it to ortserve/tune/traffic.py")
    return KINDS[task]


def write_requests(kind: Kind, folder: Path, pictures: Path, texts: Path | None) -> tuple[Path, ...]:
    """Files in `folder` that hold a whole HTTP request each. Raises TuneError where there is nothing to send."""
    try:
        if kind.takes == "picture":
            bodies = [multipart(data, media_type) for _, data, media_type in read_pictures(pictures)]
        else:
            bodies = [text_body(text) for text in read_texts(None if texts is None else str(texts))]
    except (OSError, ValueError) as error:
        raise TuneError(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, (content_type, body) in enumerate(bodies[:MOST_FILES]):
        head = f"POST {kind.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        files.append(folder / f"{index:03}.http")
        files[-1].write_bytes(head.encode() + body)
    return tuple(files)


def multipart(data: bytes, media_type: str) -> tuple[str, bytes]:
    """The content type and the body that hold the picture as the form field `image`, as `curl -F` sends it."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="picture"\r\nContent-Type: {media_type}\r\n\r\n'
    return f"multipart/form-data; boundary={BOUNDARY}", head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()


def text_body(text: str) -> tuple[str, bytes]:
    """The content type and the body of a request for one text."""
    return "application/json", json.dumps({"inputs": text, "truncate": True}).encode()
