"""What goes back: a whole response, the one table from errors to statuses, and the one shape of every error."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from ortserve import errors, logs

logger = logging.getLogger("ortserve.edge")

ErrorShape = Callable[[str, str], dict[str, Any]]  # of an error's code and message its body

# The one table from errors to statuses. A class that is not listed takes the status of its nearest base.
STATUS: dict[type[errors.OrtServeError], int] = {
    errors.OrtServeError: 500,
    errors.RequestError: 400,
    errors.InvalidImage: 400,
    errors.ShapeMismatch: 400,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.RequestTimeout: 408,
    errors.PayloadTooLarge: 413,
    errors.ImageTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.InvalidParameter: 422,
    errors.QueueFull: 429,
    errors.HeadersTooLarge: 431,
    errors.InferenceError: 500,
    errors.ServingError: 503,
    errors.ShuttingDown: 503,
    errors.RunnerUnavailable: 503,
    errors.DeadlineExceeded: 504,
}


@dataclass(slots=True)
class Reply:
    """A whole response."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def json_reply(value: Any, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Reply:
    """`value` as a JSON response."""
    return Reply(status, to_json(value), headers=list(headers))


def to_json(value: Any) -> bytes:
    """`value` as JSON, arrays of numbers as lists: a float32 as the shortest decimal that means it."""
    # Not the standard library's: 32 embeddings of 384 numbers take it 7 ms in the event loop, orjson 0.4.
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def server_timing(stages: Mapping[str, float]) -> tuple[bytes, bytes]:
    """Where the time of `stages` (seconds) went, in milliseconds, as the W3C's Server-Timing header: any browser or client can show it."""
    return b"server-timing", ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items()).encode()


def error_body(code: str, message: str) -> dict[str, Any]:
    """The one shape of every error outside `/v2`: `{"error": {"code", "message", "request_id"}}`."""
    return {"error": {"code": code, "message": message, "request_id": logs.request_id.get()}}


def v2_error_body(code: str, message: str) -> dict[str, Any]:  # noqa: ARG001  the protocol has no place for a code
    """The shape of an error that the Open Inference Protocol wants: `{"error": "message"}`."""
    return {"error": message}


def error_shape(path: str) -> ErrorShape:
    """What makes the body of an error on that path: under `/v2` a protocol's clients read it, whatever went wrong."""
    return v2_error_body if path.startswith("/v2") and path[3:4] in ("", "/") else error_body


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 500 for one that is not ours."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def error_reply(error: Exception, shape: ErrorShape = error_body) -> Reply:
    """The response for an error, its body made by `shape` of code and message. Only errors made for callers show their message."""
    headers = []
    if isinstance(error, errors.QueueFull | errors.RunnerUnavailable):
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if isinstance(error, errors.MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    if not isinstance(error, errors.RequestError | errors.ServingError):
        return json_reply(shape("internal", "the service failed on this request; its log has the reason under its X-Request-ID"), 500)
    return json_reply(shape(error.code, str(error)), status_of(error), headers)


class _Overload:
    """Which refusals for want of room are worth a line: the first in `EVERY_S`. A line for each would cost more than refusing does."""

    EVERY_S = 1.0

    def __init__(self) -> None:
        self._next = 0.0
        self.passed_over = 0

    def line(self) -> str | None:
        """What the line says of those before it that had none; None where this one has none either."""
        if (now := time.monotonic()) < self._next:
            self.passed_over += 1
            return None
        said = f", and {self.passed_over} more before it" if self.passed_over else ""
        self._next, self.passed_over = now + self.EVERY_S, 0
        return said


_overload = _Overload()


def passed_over(times: int) -> None:
    """So many more refusals for want of room had no line."""
    _overload.passed_over += times


def log_failure(where: str, error: Exception) -> None:
    """Write why a request, or one payload of it, was not answered; with what a library said of it, which no answer shows."""
    more: str | None = ""
    if isinstance(error, errors.QueueFull) and (more := _overload.line()) is None:
        return
    status = status_of(error)
    code = error.code if isinstance(error, errors.OrtServeError) else errors.OrtServeError.code
    reason = "" if error.__cause__ is None else f" ({type(error.__cause__).__name__}: {error.__cause__})"
    level = logging.ERROR if status in (500, 503) else logging.INFO
    logger.log(level, "%s: %d %s: %s%s%s", where, status, code, error, reason, more, exc_info=error if status == 500 else None)
