"""The load test: `locust` with its web page, or headless with thresholds that set the exit status.

locust --host http://localhost:3000                                              # then open http://localhost:8089
locust --host http://localhost:3000 --headless -u 32 -r 32 -t 30s --max-p99-ms 500 --max-error-rate 0.01
locust ... --pictures my/folder --tags classify         # tags: classify, detect, embed, classify_text, openai, batch, raw, models, health

The service is asked which task its model has; only the endpoints of that task are called.
"""

from __future__ import annotations

import itertools
import json
import random
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from locust import FastHttpUser, constant, events, tag, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser

MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
}
# From four tokens to some hundred: what a search box, a review and a paragraph look like.
TEXTS = (
    "where is my parcel",
    "The battery lasts two days and the screen is bright, but the case scratches easily.",
    "A small team packaged its model, measured it beside the others, and found that most of the time went into waiting: for the next "
    "batch, for a lock, for a thread that had nothing to do. They took the waiting out, measured again, and wrote down what each step "
    "had gained, so that whoever came after them would not have to guess.",
)
Method = TypeVar("Method", bound=Callable[..., Any])


def of(*tasks: str) -> Callable[[Method], Method]:
    """Marks what only models of these tasks answer."""

    def mark(method: Method) -> Method:
        method.of_tasks = tasks  # type: ignore[attr-defined]
        return method

    return mark


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """The options of this load test; all of them are in the web page's form as well."""
    parser.add_argument("--pictures", default="examples/digits", help="folder of pictures to send, searched through its subfolders")
    parser.add_argument("--texts", default=None, help="file of texts to send, one a line; a few built-in ones otherwise")
    parser.add_argument("--batch", type=int, default=8, help="pictures or texts in one request to a batch endpoint")
    parser.add_argument("--think-time-s", type=float, default=0.0, help="seconds each user waits between two requests")
    parser.add_argument("--max-p99-ms", type=float, default=None, help="exit with status 1 where the 99th percentile is above")
    parser.add_argument("--max-error-rate", type=float, default=None, help="exit with status 1 where more than this share fails, 0 to 1")
    parser.add_argument("--min-rps", type=float, default=None, help="exit with status 1 where fewer requests a second are answered")


@events.test_start.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Learn the model's task, and read what is sent once, before the first user starts."""
    try:
        with urllib.request.urlopen(f"{environment.host}/models", timeout=30) as answer:
            model = json.load(answer)["models"][0]
        environment.model_task, environment.model_name = model["task"], model["name"]  # type: ignore[attr-defined]
        environment.pictures = read_pictures(Path(environment.parsed_options.pictures))  # type: ignore[attr-defined]
        environment.texts = read_texts(environment.parsed_options.texts)  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        environment.process_exit_code = 2
        print(f"error: {error}")
        if environment.runner is not None:
            environment.runner.quit()


def read_pictures(folder: Path) -> list[tuple[str, bytes, str]]:
    """(name, bytes, media type) of each picture below the folder. Raises ValueError where there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA_TYPES)
    if not files:
        raise ValueError(f"expected pictures ({', '.join(MEDIA_TYPES)}) in {folder}, found none: name a folder with --pictures")
    return [(path.name, path.read_bytes(), MEDIA_TYPES[path.suffix.lower()]) for path in files]


def read_texts(file: str | None) -> list[str]:
    """The lines of the file that say something. Raises ValueError where there is none."""
    if file is None:
        return list(TEXTS)
    lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"expected texts in {file}, one a line, found none: name another file with --texts")
    return lines


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """Set the exit status by the thresholds, and say which one was missed."""
    options, total = environment.parsed_options, environment.stats.total
    if options is None or environment.process_exit_code:
        return
    p99_ms = total.get_response_time_percentile(0.99) or 0
    limits = (
        ("p99 is %.0f ms, above %.0f", p99_ms, options.max_p99_ms, p99_ms > (options.max_p99_ms or 0)),
        (
            "%.4f of the requests failed, more than %.4f",
            total.fail_ratio,
            options.max_error_rate,
            total.fail_ratio > (options.max_error_rate or 0),
        ),
        ("%.1f requests a second, fewer than %.1f", total.total_rps, options.min_rps, total.total_rps < (options.min_rps or 0)),
    )
    missed = [text % (value, limit) for text, value, limit, exceeded in limits if limit is not None and exceeded]
    asked = any(limit is not None for _, _, limit, _ in limits)
    if asked and not total.num_requests:
        missed.append("no request was sent")
    for line in missed:
        print(f"threshold missed: {line}")
    if asked:
        environment.process_exit_code = 1 if missed else 0


class Caller(FastHttpUser):
    """One user who sends a request, waits for the answer and sends the next: a closed loop, N users are N requests in flight."""

    def wait_time(self) -> float:
        """Seconds to the next request."""
        return constant(self.environment.parsed_options.think_time_s)(self)

    def on_start(self) -> None:
        """Keep what this model answers; begin at a random picture and text, so that users do not march in step."""
        model_task = getattr(self.environment, "model_task", None)
        self.tasks = [call for call in type(self).tasks if model_task in getattr(call, "of_tasks", (model_task,))]
        if model_task is None or not self.tasks:
            raise StopUser
        self.pictures = _from_anywhere(self.environment.pictures)
        self.texts = _from_anywhere(self.environment.texts)

    @tag("classify")
    @of("image-classification")
    @task(20)
    def classify(self) -> None:
        """One picture as a form field."""
        self.client.post("/classify", files={"image": next(self.pictures)})

    @tag("classify", "raw")
    @of("image-classification")
    @task(5)
    def classify_raw(self) -> None:
        """One picture as the whole body."""
        _, data, media_type = next(self.pictures)
        self.client.post("/classify?top_k=1", data=data, headers={"Content-Type": media_type}, name="/classify (raw body)")

    @tag("classify", "batch")
    @of("image-classification")
    @task(2)
    def classify_batch(self) -> None:
        """Many pictures in one request."""
        self._picture_batch("/classify_batch")

    @tag("detect")
    @of("object-detection")
    @task(20)
    def detect(self) -> None:
        """One picture as a form field."""
        self.client.post("/detect", files={"image": next(self.pictures)})

    @tag("detect", "batch")
    @of("object-detection")
    @task(2)
    def detect_batch(self) -> None:
        """Many pictures in one request."""
        self._picture_batch("/detect_batch")

    @tag("embed")
    @of("feature-extraction")
    @task(20)
    def embed(self) -> None:
        """One text."""
        self.client.post("/embed", json={"inputs": next(self.texts), "truncate": True})

    @tag("embed", "batch")
    @of("feature-extraction")
    @task(5)
    def embed_many(self) -> None:
        """Many texts in one request."""
        self.client.post("/embed", json={"inputs": self._some_texts(), "truncate": True}, name="/embed (many)")

    @tag("openai")
    @of("feature-extraction")
    @task(5)
    def openai_embeddings(self) -> None:
        """The same in the shape of OpenAI's embeddings."""
        self.client.post("/v1/embeddings", json={"input": self._some_texts(), "model": self.environment.model_name})

    @tag("classify_text")
    @of("text-classification")
    @task(20)
    def classify_text(self) -> None:
        """One text."""
        self.client.post("/classify_text", json={"inputs": next(self.texts), "truncate": True})

    @tag("models")
    @task(1)
    def models(self) -> None:
        """The served models."""
        self.client.get("/models")

    @tag("health")
    @task(1)
    def ready(self) -> None:
        """Readiness, as an orchestrator asks."""
        self.client.get("/readyz")

    def _picture_batch(self, path: str) -> None:
        """An error for one of the pictures counts as a failure."""
        files = [("images", next(self.pictures)) for _ in range(self.environment.parsed_options.batch)]
        with self.client.post(path, files=files, catch_response=True) as response:
            if response.status_code == 200 and any("error" in result for result in response.json()["results"]):
                response.failure("one of the pictures was refused")

    def _some_texts(self) -> list[str]:
        return [next(self.texts) for _ in range(self.environment.parsed_options.batch)]


def _from_anywhere(values: list[Any]) -> Any:
    """The values round and round, from a random one on."""
    start = random.randrange(len(values))
    return itertools.cycle(values[start:] + values[:start])
