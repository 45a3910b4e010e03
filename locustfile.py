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

from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
from locust import events, tag, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest import options, shapes
from loadtest.arrivals import Arrivals, stop_workers
from loadtest.judge import Judge
from loadtest.models import ask, names_by_task, rows_by_name
from loadtest.payloads import read_pictures, read_texts
from loadtest.user import ModelUser, by_tag, of

events.init_command_line_parser.add_listener(options.add)
Judge(events)


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


class Caller(ModelUser):
    """One user of the service: what it may send, how often, and as what it is counted."""

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
