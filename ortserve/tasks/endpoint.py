"""What a task tells the edge of its HTTP paths."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path a task answers by POST. `many`: several payloads in one request, each with its own answer or error."""

    path: str  # "/classify"
    field: str  # the multipart field that carries a payload: "image"
    answer: str  # the key of the answer in the JSON: "predictions"
    raw_media_type: str  # media types that begin so may be the whole body, where not `many`: "image/"
    many: bool = False
