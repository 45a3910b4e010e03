"""The open loop: requests that come when they come, not when an answer frees a user.

Each of locust's users becomes a source of arrivals: it waits an exponentially distributed time, which makes the arrivals of all users
together a Poisson process of the wanted rate, and hands the request to a caller of its own greenlet and connection; where every caller
is busy a new one is made. Under a shape it leaves out as many as the level says. Arrivals keep to a timetable: a late one makes the next
ones no later, and its time counts from when it was due. At the end those under way are waited for, and what is not answered then is
counted as failed, or the slowest answers would be missing from the figures.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.pool import Group
from locust import FastHttpUser
from locust.env import Environment
from locust.runners import STATE_STOPPING, MasterRunner

from loadtest.levels import level
from loadtest.options import number
from loadtest.timetable import following


@dataclass(frozen=True, slots=True)
class SinceDue:
    """locust's event of a request, with the time from when it was due: what was sent late has waited already."""

    request: Any  # EventHook, which has no types
    due: float  # by time.perf_counter

    def fire(self, **measured: Any) -> None:
        """As locust's own."""
        self.request.fire(**{**measured, "response_time": (time.perf_counter() - self.due) * 1000})


class Arrivals:
    """What all users of one process have in common while a test runs: the clock, the callers, who is under way."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._started = time.perf_counter()
        self._chance = random.Random()
        self._under_way: dict[Any, tuple[str, float]] = {}  # greenlet -> what it asks, due when
        self._group = Group()
        self._idle: list[FastHttpUser] = []
        self._ending = False
        self.most_under_way = 0

    def now_s(self) -> float:
        """Seconds since the start of the test."""
        return time.perf_counter() - self._started

    def following(self, due_s: float) -> tuple[float, bool]:
        """The moment after `due_s` at which one user may send a request, in seconds since the start, and whether it does."""
        options = self._environment.parsed_options
        rate_per_s = (number(options.rate) or 0) / max(1, int(number(options.all_users) or 1))
        return following(due_s, rate_per_s, lambda elapsed_s: level(options, elapsed_s), self._chance)

    def send(self, due_s: float, make: Callable[[], FastHttpUser], choose: Callable[[FastHttpUser], Callable[[Any], None]]) -> None:
        """Let an idle caller, or a new one, send the request that was due then."""
        if self._ending:
            return
        caller = self._idle.pop() if self._idle else make()
        call = choose(caller)
        due = self._started + due_s
        caller.client.request_event = SinceDue(self._environment.events.request, due)

        def one() -> None:
            try:
                call(caller)
            finally:
                self._under_way.pop(greenlet, None)
                self._idle.append(caller)

        greenlet = gevent.Greenlet(one)
        self._under_way[greenlet] = (call.__name__, due)
        self.most_under_way = max(self.most_under_way, len(self._under_way))
        self._group.start(greenlet)

    def end(self) -> None:
        """Nothing arrives any more; wait for what is under way, and count what stays out as failed."""
        self._ending = True
        within_s = self._environment.parsed_options.answer_within_s
        self._group.join(timeout=within_s)
        for name, due in list(self._under_way.values()):
            self._environment.events.request.fire(
                request_type="POST",
                name=f"/{name} (no answer)",
                response_time=(time.perf_counter() - due) * 1000,
                response_length=0,
                exception=TimeoutError(f"no answer {within_s:g} s after the end of the test"),
                context={},
            )
        self._group.kill(block=False)


def stop_workers(runner: MasterRunner) -> None:
    """Stop them and wait for what they wait for: locust's own end leaves them half a second, and their last answers would be missing."""
    runner.update_state(STATE_STOPPING)  # else it replaces a worker that stops
    runner.send_message("stop")
    while runner.clients.running or runner.clients.spawning:  # one that is lost is neither, once it misses its heartbeats
        gevent.sleep(0.1)
