"""The open loop: requests that come when they come, not when an answer frees a user.

Each of locust's users becomes a source of arrivals: it waits an exponentially distributed time, which makes the arrivals of all users
together a Poisson process of the wanted rate, and hands the request to a caller of its own greenlet and connection; where every caller
is busy a new one is made. Arrivals keep to a timetable: a late one makes the next ones no later. At the end those under way are waited
for, and what is not answered then is counted as failed, or the slowest answers would be missing from the figures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.pool import Group
from locust import FastHttpUser
from locust.env import Environment

from loadtest.levels import level
from loadtest.options import number

LOWEST_LEVEL = 0.01  # of the rate: a ramp begins at nothing, and nothing never comes to an end


class Arrivals:
    """What all users of one process have in common while a test runs: the clock, the callers, who is under way."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._started = time.perf_counter()
        self._under_way: dict[Any, tuple[str, float]] = {}  # greenlet -> what it asks, since when
        self._group = Group()
        self._idle: list[FastHttpUser] = []
        self._ending = False
        self.most_under_way = 0

    def gap_s(self) -> float:
        """Seconds from one arrival of one user to its next."""
        options = self._environment.parsed_options
        share = max(LOWEST_LEVEL, level(options, time.perf_counter() - self._started))
        rate = share * (number(options.rate) or 0) / max(1, int(number(options.num_users) or 1))
        return random.expovariate(rate)

    def send(self, make: Callable[[], FastHttpUser], choose: Callable[[FastHttpUser], Callable[[Any], None]]) -> None:
        """Let an idle caller, or a new one, send one request now."""
        if self._ending:
            return
        caller = self._idle.pop() if self._idle else make()
        call = choose(caller)

        def one() -> None:
            try:
                call(caller)
            finally:
                self._under_way.pop(greenlet, None)
                self._idle.append(caller)

        greenlet = gevent.Greenlet(one)
        self._under_way[greenlet] = (call.__name__, time.perf_counter())
        self.most_under_way = max(self.most_under_way, len(self._under_way))
        self._group.start(greenlet)

    def end(self) -> None:
        """Nothing arrives any more; wait for what is under way, and count what stays out as failed."""
        self._ending = True
        within_s = self._environment.parsed_options.answer_within_s
        self._group.join(timeout=within_s)
        for name, since in list(self._under_way.values()):
            self._environment.events.request.fire(
                request_type="POST",
                name=f"/{name} (no answer)",
                response_time=(time.perf_counter() - since) * 1000,
                response_length=0,
                exception=TimeoutError(f"no answer {within_s:g} s after the end of the test"),
                context={},
            )
        self._group.kill(block=False)
