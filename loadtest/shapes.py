"""The shapes as locust knows them: asked each second how many users there should be."""

from __future__ import annotations

import math

from locust import LoadTestShape
from locust.env import Environment

from loadtest.levels import length_s, level
from loadtest.options import number


class Shape(LoadTestShape):
    """`--shape`, and -u, -r and -t beside it.

    Made when locust has read its options, not found by it in the locustfile: it would then be there for every test. Of `constant` it is
    not there either, as far as locust can tell (it asks `if environment.shape_class`), so that users and spawn rate can still be changed
    on the web page while a test runs, and a shape can be chosen in its form.
    """

    abstract = True  # locust makes an object of any other shape that it finds in a locustfile
    use_common_options = True

    def __init__(self, environment: Environment) -> None:
        super().__init__()
        self._environment = environment
        self.runner = environment.runner

    def __bool__(self) -> bool:
        return self._environment.parsed_options.shape != "constant"

    def tick(self) -> tuple[int, float] | None:
        """The users there should be now, and how many come or go a second; None where the test is over."""
        options, elapsed_s = self._environment.parsed_options, self.get_run_time()
        run_time_s = number(options.run_time) or length_s(options)
        if run_time_s is not None and elapsed_s >= run_time_s:
            return None
        most = int(number(options.num_users) or 1)
        if number(options.rate) is not None:
            return most, float(most)  # the rate has the shape
        return max(1, math.ceil(most * level(options, elapsed_s))), float(most)  # all of them at once, if the shape says so
