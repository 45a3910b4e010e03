"""What a queue says to those it cannot serve: the same words wherever the queue is."""

from __future__ import annotations

import time

from ortserve.errors import DeadlineExceeded, PayloadTooLarge, QueueFull, RunnerUnavailable, ShapeMismatch, ShuttingDown

_SURE = 0.8  # of the time that is left: how long a queue takes is an estimate by a mean, and a batch and the decoding come on top


def queue_full(rows: int, limit: int, waiting: int, drain_s: float) -> QueueFull:
    """The queue of `limit` rows has no room for `rows` more; it needs `drain_s` seconds to drain."""
    message = f"expected room for {rows} of {limit} rows, {waiting} wait already: send it again later"
    return QueueFull(message, retry_after_s=drain_s)


def expect_time(deadline: float, drain_s: float) -> None:
    """Nothing, where a queue that needs `drain_s` seconds to drain leaves time before `deadline` (`time.monotonic()` seconds).

    Raises QueueFull: who would wait until the deadline and be answered nothing had better know at once, and its pixels cost nobody.
    """
    allowed_s = deadline - time.monotonic()
    if drain_s > _SURE * allowed_s:
        message = f"expected an answer within {allowed_s:.1f} s, those who wait already take {drain_s:.1f} s: send it again later"
        raise QueueFull(message, retry_after_s=drain_s)


def too_many(rows: int, limit: int) -> PayloadTooLarge:
    """The queue of `limit` rows never has room for so many."""
    return PayloadTooLarge(f"expected at most {limit} in one request, got {rows}: send several requests")


def unequal_rows(name: str, shape: tuple[int, ...], rows: int) -> ShapeMismatch:
    """The input of that name has not the `rows` rows that have their place."""
    return ShapeMismatch(f"expected {rows} rows in {name!r}, got the shape {list(shape)}: send as many rows as were admitted")


def late() -> DeadlineExceeded:
    """The deadline passed before there was an answer."""
    return DeadlineExceeded("expected an answer before the request's deadline, the service is too busy: send it later or allow more time")


def stopping() -> ShuttingDown:
    """The queue takes nothing more."""
    return ShuttingDown("expected a running service, it is stopping: send the request again, to another instance")


def no_runner() -> RunnerUnavailable:
    """The process that holds the model is not there, or died with the row."""
    return RunnerUnavailable("expected the process that holds the model, it is not there just now: send the request again")
