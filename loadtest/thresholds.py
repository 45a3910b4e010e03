"""The thresholds: what a run came to, and which of them it missed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is asked of a run; None is nothing."""

    max_p99_ms: float | None = None
    max_error_rate: float | None = None
    min_rps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What it came to."""

    requests: int
    failures: int
    lasted_s: float
    p99_ms: float  # of the successful requests


def missed(limits: Limits, run: Run) -> list[str]:
    """A line for each limit that was missed: for all of them where no request succeeded, for then there is nothing to judge by."""
    succeeded = run.requests - run.failures
    if not succeeded:
        asked = {name: limit for name, limit in vars(limits).items() if limit is not None}
        return [f"{name} is {limit:g}, but none of {run.requests} requests succeeded" for name, limit in asked.items()]
    error_rate, rps = run.failures / run.requests, succeeded / run.lasted_s
    lines = []
    if limits.max_p99_ms is not None and run.p99_ms > limits.max_p99_ms:
        lines.append(f"p99 is {run.p99_ms:.1f} ms, above {limits.max_p99_ms:g}")
    if limits.max_error_rate is not None and error_rate > limits.max_error_rate:
        lines.append(f"{error_rate:.4f} of the requests failed, more than {limits.max_error_rate:g}")
    if limits.min_rps is not None and rps < limits.min_rps:
        lines.append(f"{rps:.1f} answered requests a second, fewer than {limits.min_rps:g}")
    return lines
