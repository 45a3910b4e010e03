"""A user of the service: which of its tasks the served models answer, and when each is sent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from locust import FastHttpUser
from locust.env import Environment
from locust.exception import StopUser

from loadtest.arrivals import Arrivals
from loadtest.payloads import from_anywhere

Method = TypeVar("Method", bound=Callable[..., Any])


def of(*tasks: str) -> Callable[[Method], Method]:
    """Marks what only models of these tasks answer."""

    def mark(method: Method) -> Method:
        method.of_tasks = tasks  # type: ignore[attr-defined]
        return method

    return mark


def by_tag(method: Method) -> Method:
    """Marks what is sent only where `--tags` names it: a run without it is of the endpoints that people call."""
    method.by_tag = True  # type: ignore[attr-defined]
    return method


class ModelUser(FastHttpUser):
    """One user who sends a request, waits for the answer and sends the next: a closed loop, N users are N requests in flight.

    With `--rate` it is a source of requests for other callers, see `loadtest/arrivals.py`.
    """

    abstract = True  # its tasks are the locustfile's

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.arrivals: Arrivals | None = None
        self.due_s, self.sends = 0.0, False

    def wait_time(self) -> float:
        """Seconds to the next request."""
        if self.arrivals is None:
            think_time_s: float = self.environment.parsed_options.think_time_s
            return think_time_s
        self.due_s, self.sends = self.arrivals.following(self.due_s)
        return max(0.0, self.due_s - self.arrivals.now_s())

    def on_start(self) -> None:
        """Keep what these models answer; begin at a random picture and text, so that users do not march in step."""
        models = getattr(self.environment, "models", None)
        if models is None:
            raise StopUser
        calls = [call for call in type(self).tasks if self._wanted(call, models)]
        if not calls:
            raise StopUser
        self.models = {of_task: from_anywhere(names) for of_task, names in models.items()}
        self.names = from_anywhere([name for names in models.values() for name in names])
        self.pictures = from_anywhere(self.environment.pictures)
        self.texts = from_anywhere(self.environment.texts)
        self.tasks = calls
        self.arrivals = self.environment.arrivals
        if self.arrivals is not None:
            self.calls, self.tasks = calls, [ModelUser.arrive]
            self.due_s = self.arrivals.now_s()
            time.sleep(self.wait_time())  # the first one comes at random as well; gevent's sleep, as locust has patched it

    def arrive(self) -> None:
        """One request of the open loop, where one is due."""
        if self.arrivals is not None and self.sends:
            self.arrivals.send(self.due_s, self._another, lambda _: random.choice(self.calls))

    def _another(self) -> ModelUser:
        """A caller of the open loop, with a connection of its own."""
        caller = type(self)(self.environment)
        caller.models, caller.names, caller.pictures, caller.texts = self.models, self.names, self.pictures, self.texts
        return caller

    def _wanted(self, call: Any, models: Mapping[str, list[str]]) -> bool:
        """Whether a model answers it, and of what is sent by tag only whether there are tags: locust has left out what they do not name."""
        answered = not hasattr(call, "of_tasks") or bool(set(call.of_tasks) & models.keys())
        return answered and (not hasattr(call, "by_tag") or bool(self.environment.parsed_options.tags))

    def _some_texts(self) -> list[str]:
        return [next(self.texts) for _ in range(self.environment.parsed_options.batch)]

    def _query(self, of_task: str, before: str = "?") -> str:
        """`?model=NAME` where several models have the task, else nothing: then there is nothing to choose."""
        return f"{before}model={quote(next(self.models[of_task]))}" if self._several(of_task) else ""

    def _json(self, of_task: str, **fields: Any) -> dict[str, Any]:
        """The fields of a request's JSON, `model` among them where several models have the task."""
        return {**fields, "model": next(self.models[of_task])} if self._several(of_task) else fields

    def _several(self, of_task: str) -> bool:
        return len(self.environment.models[of_task]) > 1
