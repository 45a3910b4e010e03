"""The exit status by the thresholds, of one process or of all workers together."""

from __future__ import annotations

import math
import time
from typing import Any

from locust import log
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest.options import number
from loadtest.thresholds import Limits, Run, missed
from loadtest.times import Times


def limits(environment: Environment) -> Limits:
    """What the options ask of the run."""
    names = ("max_p99_ms", "max_error_rate", "min_rps")
    return Limits(**{name: number(getattr(environment.parsed_options, name)) for name in names})


class Judge:
    """Keeps the times of successful requests, for locust's have the failures among them and two digits; judges at the end.

    Every process keeps its own; workers send theirs to the master with locust's reports, and the master alone judges.
    """

    def __init__(self, events: Any) -> None:  # locust's Events, whose methods have no types
        self._times = Times()
        self._stopped_at = math.inf  # seconds since the epoch, as in locust's figures
        self._restarts = False
        events.test_start.add_listener(self._start)
        events.request.add_listener(self._count)
        events.spawning_complete.add_listener(self._spawned)
        events.reset_stats.add_listener(self._forget)
        events.report_to_master.add_listener(self._report)
        events.worker_report.add_listener(self._collect)
        events.test_stopping.add_listener(self._stop)
        events.quitting.add_listener(self._judge)

    def _start(self, environment: Environment, **_: Any) -> None:
        self._times = Times(limits(environment).max_p99_ms or 1.0)
        self._stopped_at = math.inf
        self._restarts = environment.reset_stats

    def _count(self, response_time: float, exception: Any = None, **_: Any) -> None:
        if not exception:
            self._times.add(response_time)

    def _spawned(self, **_: Any) -> None:
        if self._restarts:
            self._forget()

    def _forget(self, **_: Any) -> None:
        self._times.take()

    def _report(self, data: dict[str, Any], **_: Any) -> None:
        data["times"] = self._times.take()

    def _collect(self, data: dict[str, Any], **_: Any) -> None:
        self._times.merge(data["times"])

    def _stop(self, **_: Any) -> None:
        self._stopped_at = time.time()

    def _judge(self, environment: Environment, **_: Any) -> None:
        """Set the exit status where the thresholds decide it, and say which was missed; else locust's own stands."""
        runner, total, asked = environment.runner, environment.stats.total, limits(environment)
        if runner is None or isinstance(runner, WorkerRunner) or environment.process_exit_code:
            return
        # Not only to the last request: a service that answers no more has none.
        ended_at = max(min(self._stopped_at, time.time()), total.last_request_timestamp or 0.0)
        run = Run(
            requests=total.num_requests,
            failures=total.num_failures,
            lasted_s=ended_at - total.start_time,
            p99_ms=self._times.p99_ms(),
        )
        lines = missed(asked, run)
        for line in lines:
            print(f"threshold missed: {line}")
        if lines:
            environment.process_exit_code = 1
        elif asked.max_error_rate is not None and not runner.exceptions and not log.unhandled_greenlet_exception:
            environment.process_exit_code = 0  # locust's would be 1 for the first failed request, and so many are allowed
