"""The load test: `locust` with its web page, or headless with thresholds that set the exit status.

locust --host http://localhost:3000                                              # then open http://localhost:8089
locust --host http://localhost:3000 --headless -u 32 -r 32 -t 30s --max-p99-ms 500 --max-error-rate 0.01
locust ... --pictures my/folder --tags classify                                  # tags: classify, batch, models, health
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

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


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """The options of this load test; all of them are in the web page's form as well."""
    parser.add_argument("--pictures", default="examples/digits", help="folder of pictures to send, searched through its subfolders")
    parser.add_argument("--batch", type=int, default=8, help="pictures in one request to /classify_batch")
    parser.add_argument("--think-time-s", type=float, default=0.0, help="seconds each user waits between two requests")
    parser.add_argument("--max-p99-ms", type=float, default=None, help="exit with status 1 where the 99th percentile is above")
    parser.add_argument("--max-error-rate", type=float, default=None, help="exit with status 1 where more than this share fails, 0 to 1")
    parser.add_argument("--min-rps", type=float, default=None, help="exit with status 1 where fewer requests a second are answered")


@events.test_start.add_listener
def load_pictures(environment: Environment, **_: Any) -> None:
    """Read the pictures once, before the first user starts."""
    folder = Path(environment.parsed_options.pictures)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA_TYPES)
    environment.pictures = [(path.name, path.read_bytes(), MEDIA_TYPES[path.suffix.lower()]) for path in files]  # type: ignore[attr-defined]
    if not files:
        environment.process_exit_code = 2
        print(f"error: expected pictures ({', '.join(MEDIA_TYPES)}) in {folder}, found none: name a folder with --pictures")
        if environment.runner is not None:
            environment.runner.quit()


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
    """One user who sends a picture, waits for the answer and sends the next: a closed loop, N users are N requests in flight."""

    def wait_time(self) -> float:
        """Seconds to the next request."""
        return constant(self.environment.parsed_options.think_time_s)(self)

    def on_start(self) -> None:
        """Begin at a random picture, so that users do not march in step."""
        pictures = getattr(self.environment, "pictures", [])
        if not pictures:
            raise StopUser
        start = random.randrange(len(pictures))
        self.pictures = itertools.cycle(pictures[start:] + pictures[:start])

    @tag("classify")
    @task(20)
    def classify(self) -> None:
        """One picture as a form field."""
        self.client.post("/classify", files={"image": next(self.pictures)})

    @tag("classify", "raw")
    @task(5)
    def classify_raw(self) -> None:
        """One picture as the whole body."""
        _, data, media_type = next(self.pictures)
        self.client.post("/classify?top_k=1", data=data, headers={"Content-Type": media_type}, name="/classify (raw body)")

    @tag("batch")
    @task(2)
    def classify_batch(self) -> None:
        """Many pictures in one request; an error for one of them counts as a failure."""
        files = [("images", next(self.pictures)) for _ in range(self.environment.parsed_options.batch)]
        with self.client.post("/classify_batch", files=files, catch_response=True) as response:
            if response.status_code == 200 and any("error" in result for result in response.json()["results"]):
                response.failure("one of the pictures was refused")

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
