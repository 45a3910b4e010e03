"""The thresholds, which set the exit status."""

from __future__ import annotations

from typing import Any

from locust.env import Environment

from loadtest.options import number


def judge(environment: Environment, **_: Any) -> None:
    """Set the exit status by the thresholds, and say which one was missed."""
    options, total = environment.parsed_options, environment.stats.total
    if options is None or environment.process_exit_code:
        return
    p99_ms = total.get_response_time_percentile(0.99) or 0
    max_p99_ms, max_error_rate, min_rps = number(options.max_p99_ms), number(options.max_error_rate), number(options.min_rps)
    limits = (
        ("p99 is %.0f ms, above %.0f", p99_ms, max_p99_ms, p99_ms > (max_p99_ms or 0)),
        ("%.4f of the requests failed, more than %.4f", total.fail_ratio, max_error_rate, total.fail_ratio > (max_error_rate or 0)),
        ("%.1f requests a second, fewer than %.1f", total.total_rps, min_rps, total.total_rps < (min_rps or 0)),
    )
    missed = [text % (value, limit) for text, value, limit, exceeded in limits if limit is not None and exceeded]
    asked = any(limit is not None for _, _, limit, _ in limits)
    if asked and not total.num_requests:
        missed.append("no request was sent")
    for line in missed:
        print(f"threshold missed: {line}")
    if asked:
        environment.process_exit_code = 1 if missed else 0
