"""The load test: `locust` with its web page, or headless with thresholds that set the exit status.

locust --host http://localhost:3000                                              # then open http://localhost:8089
locust --host http://localhost:3000 --headless -u 32 -r 32 -t 30s --max-p99-ms 500 --max-error-rate 0.01
locust ... --shape ramp -u 64 --html report.html        # shapes: constant, ramp, spike; -u users at most
locust ... --rate 200 -t 60s                            # open loop: 200 requests a second arrive, whatever the answers do
locust ... --pictures my/folder --tags classify         # tags: classify, detect, embed, classify_text, openai, batch, raw, models, health
locust ... --tags v2 metrics --exclude-tags json        # only where they are named: v2 (json, binary), metrics, more of models, health

The service is asked which models it has; the endpoints of their tasks are called, and no others but those of `--tags`. Where several
models have the same task, each is asked in turn.
"""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import gevent
from locust import FastHttpUser, events, tag, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from loadtest import options, shapes, tensors
from loadtest.arrivals import Arrivals, stop_workers
from loadtest.judge import Judge
from loadtest.payloads import from_anywhere, read_pictures, read_texts

Method = TypeVar("Method", bound=Callable[..., Any])

events.init_command_line_parser.add_listener(options.add)
Judge(events)


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


@events.init.add_listener
def lay_out(environment: Environment, web_ui: Any = None, **_: Any) -> None:
    """The shape of the load, once the options are read."""
    gevent.get_hub().loop.update_now()  # it stood while everything was imported: -t would end that much too early
    shapes.choose(environment, environment.parsed_options.shape)
    if web_ui is not None:
        shapes.choose_on_the_page(environment, web_ui)


@events.test_start.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Learn the models and their tasks, and read what is sent once, before the first user starts."""
    given = environment.parsed_options
    if not isinstance(environment.runner, WorkerRunner):
        given.all_users = given.num_users  # its own options locust keeps from its workers, and of the page's form they know no other
    try:
        environment.models = names_by_task(ask(environment, "/models")["models"])  # type: ignore[attr-defined]
        inferred = {"v2", "json", "binary"} & set(given.tags or ())
        environment.rows = rows_by_name(environment) if inferred else {}  # type: ignore[attr-defined]
        environment.pictures = read_pictures(Path(given.pictures))  # type: ignore[attr-defined]
        environment.texts = read_texts(given.texts)  # type: ignore[attr-defined]
        open_loop = options.number(given.rate) is not None
        environment.arrivals = Arrivals(environment) if open_loop else None  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        environment.process_exit_code = 2
        print(f"error: {error}")
        if environment.runner is not None:
            gevent.spawn(environment.runner.quit)  # it ends the greenlet that this is: from here it would end itself and no more


@events.test_stopping.add_listener
def finish(environment: Environment, **_: Any) -> None:
    """Wait for what the open loop has under way."""
    if (arrivals := getattr(environment, "arrivals", None)) is None:
        return
    if isinstance(environment.runner, MasterRunner):
        stop_workers(environment.runner)
    else:
        arrivals.end()
        print(f"open loop: {arrivals.most_under_way} requests were under way at most")


def ask(environment: Environment, path: str) -> Any:
    """The JSON that the service answers there."""
    with urllib.request.urlopen(f"{environment.host}{path}", timeout=30) as answer:
        return json.load(answer)


def names_by_task(models: list[dict[str, str]]) -> Mapping[str, list[str]]:
    """task -> the names of its models, from what `GET /models` lists."""
    found: dict[str, list[str]] = {}
    for model in models:
        found.setdefault(model["task"], []).append(model["name"])
    return found


def rows_by_name(environment: Environment) -> Mapping[str, tuple[tensors.Request, tensors.Request]]:
    """name -> a row for that model as `/v2` takes it, in JSON and in bytes."""
    names = [name for names in environment.models.values() for name in names]  # type: ignore[attr-defined]
    inputs = {name: ask(environment, f"/v2/models/{quote(name)}")["inputs"] for name in names}
    return {name: (tensors.as_json(of_one), tensors.as_bytes(of_one)) for name, of_one in inputs.items()}


class Caller(FastHttpUser):
    """One user who sends a request, waits for the answer and sends the next: a closed loop, N users are N requests in flight.

    With `--rate` it is a source of requests for other callers, see `loadtest/arrivals.py`.
    """

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
            self.calls, self.tasks = calls, [Caller.arrive]
            self.due_s = self.arrivals.now_s()
            time.sleep(self.wait_time())  # the first one comes at random as well; gevent's sleep, as locust has patched it

    def arrive(self) -> None:
        """One request of the open loop, where one is due."""
        if self.arrivals is not None and self.sends:
            self.arrivals.send(self.due_s, self._another, lambda _: random.choice(self.calls))

    def _another(self) -> Caller:
        """A caller of the open loop, with a connection of its own."""
        caller = type(self)(self.environment)
        caller.models, caller.names, caller.pictures, caller.texts = self.models, self.names, self.pictures, self.texts
        return caller

    def _wanted(self, call: Any, models: Mapping[str, list[str]]) -> bool:
        """Whether a model answers it, and of what is sent by tag only whether there are tags: locust has left out what they do not name."""
        answered = not hasattr(call, "of_tasks") or bool(set(call.of_tasks) & models.keys())
        return answered and (not hasattr(call, "by_tag") or bool(self.environment.parsed_options.tags))

    @tag("classify")
    @of("image-classification")
    @task(20)
    def classify(self) -> None:
        """One picture as a form field."""
        self.client.post("/classify" + self._query("image-classification"), files={"image": next(self.pictures)}, name="/classify")

    @tag("classify", "raw")
    @of("image-classification")
    @task(5)
    def classify_raw(self) -> None:
        """One picture as the whole body."""
        _, data, media_type = next(self.pictures)
        path = "/classify?top_k=1" + self._query("image-classification", "&")
        self.client.post(path, data=data, headers={"Content-Type": media_type}, name="/classify (raw body)")

    @tag("classify", "batch")
    @of("image-classification")
    @task(2)
    def classify_batch(self) -> None:
        """Many pictures in one request."""
        self._picture_batch("/classify_batch", "image-classification")

    @tag("detect")
    @of("object-detection")
    @task(20)
    def detect(self) -> None:
        """One picture as a form field."""
        self.client.post("/detect" + self._query("object-detection"), files={"image": next(self.pictures)}, name="/detect")

    @tag("detect", "batch")
    @of("object-detection")
    @task(2)
    def detect_batch(self) -> None:
        """Many pictures in one request."""
        self._picture_batch("/detect_batch", "object-detection")

    @tag("embed")
    @of("feature-extraction")
    @task(20)
    def embed(self) -> None:
        """One text."""
        self.client.post("/embed", json=self._json("feature-extraction", inputs=next(self.texts), truncate=True))

    @tag("embed", "batch")
    @of("feature-extraction")
    @task(5)
    def embed_many(self) -> None:
        """Many texts in one request."""
        fields = self._json("feature-extraction", inputs=self._some_texts(), truncate=True)
        self.client.post("/embed", json=fields, name="/embed (many)")

    @tag("openai")
    @of("feature-extraction")
    @task(5)
    def openai_embeddings(self) -> None:
        """The same in the shape of OpenAI's embeddings."""
        self.client.post("/v1/embeddings", json={"input": self._some_texts(), "model": next(self.models["feature-extraction"])})

    @tag("classify_text")
    @of("text-classification")
    @task(20)
    def classify_text(self) -> None:
        """One text."""
        self.client.post("/classify_text", json=self._json("text-classification", inputs=next(self.texts), truncate=True))

    @tag("models")
    @task(1)
    def list_models(self) -> None:
        """The served models."""
        self.client.get("/models")

    @tag("models")
    @by_tag
    @task(1)
    def describe_model(self) -> None:
        """All that is known of one model."""
        self.client.get(f"/models/{quote(next(self.names))}", name="/models/{name}")

    @tag("health")
    @task(1)
    def ready(self) -> None:
        """Readiness, as an orchestrator asks."""
        self.client.get("/readyz")

    @tag("health")
    @by_tag
    @task(1)
    def alive(self) -> None:
        """Liveness, as an orchestrator asks."""
        self.client.get("/livez")

    @tag("metrics")
    @by_tag
    @task(1)
    def metrics(self) -> None:
        """What Prometheus reads."""
        self.client.get("/metrics")

    @tag("v2", "json")
    @by_tag
    @task(20)
    def infer(self) -> None:
        """One row of a model as JSON. Of a large picture it is more than `limits.max_json_bytes`, FP16 has none: --exclude-tags json."""
        self._infer(0, "/v2/models/{name}/infer")

    @tag("v2", "binary")
    @by_tag
    @task(20)
    def infer_binary(self) -> None:
        """One row of a model as bytes."""
        self._infer(1, "/v2/models/{name}/infer (binary)")

    @tag("v2", "models")
    @by_tag
    @task(1)
    def v2_server(self) -> None:
        """What the protocol says of the server."""
        self.client.get("/v2")

    @tag("v2", "models")
    @by_tag
    @task(1)
    def v2_model(self) -> None:
        """What the protocol says of one model."""
        self.client.get(f"/v2/models/{quote(next(self.names))}", name="/v2/models/{name}")

    @tag("v2", "health")
    @by_tag
    @task(1)
    def v2_ready(self) -> None:
        """Readiness, as a client of the protocol asks."""
        self.client.get("/v2/health/ready")

    @tag("v2", "health")
    @by_tag
    @task(1)
    def v2_alive(self) -> None:
        """Liveness, as a client of the protocol asks."""
        self.client.get("/v2/health/live")

    def _picture_batch(self, path: str, of_task: str) -> None:
        """An error for one of the pictures counts as a failure."""
        files = [("images", next(self.pictures)) for _ in range(self.environment.parsed_options.batch)]
        with self.client.post(path + self._query(of_task), files=files, name=path, catch_response=True) as response:
            if response.status_code == 200 and any("error" in result for result in response.json()["results"]):
                response.failure("one of the pictures was refused")

    def _infer(self, how: int, name: str) -> None:
        of_model = next(self.names)
        body, headers = self.environment.rows[of_model][how]
        self.client.post(f"/v2/models/{quote(of_model)}/infer", data=body, headers=headers, name=name)

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
