"""The shapes as locust knows them: asked each second how many users there should be."""

from __future__ import annotations

import math

from flask import request
from locust import LoadTestShape
from locust.env import Environment
from locust.web import WebUI

from loadtest.levels import length_s, level
from loadtest.options import number


def choose(environment: Environment, name: str) -> None:
    """Give the test that shape. A constant one has none, so that its users can still be changed on the web page while it runs."""
    environment.shape_class = None if name == "constant" else Shape(environment)


def choose_on_the_page(environment: Environment, web_ui: WebUI) -> None:
    """Let the shape be chosen in the web page's form: locust itself would take the one it was started with."""

    @web_ui.app.before_request
    def before() -> None:
        running = environment.runner is not None and environment.runner.shape_greenlet is not None
        if request.method == "POST" and request.path.endswith("/swarm") and "shape" in request.form and not running:
            choose(environment, request.form["shape"])


class Shape(LoadTestShape):
    """`--shape`, and -u, -r and -t beside it. What the form says counts: the options are read at each tick."""

    abstract = True  # else locust makes one when it finds the class in a locustfile, and every test has it
    use_common_options = True  # -u, -r and -t

    def __init__(self, environment: Environment) -> None:
        super().__init__()
        self._environment = environment
        self.runner = environment.runner

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
