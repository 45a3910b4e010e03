"""The load test against the real service: its thresholds set the exit status, its page comes up, every endpoint is asked."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from ortserve.tune.ports import free_port
from tests.packages import add_package, write_profile
from tests.serving import ROOT, Server, until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(digits_home: Path) -> Iterator[Server]:
    with Server(digits_home) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that answers some ten pictures a second, one after the other."""
    home = tmp_path_factory.mktemp("slow")
    add_package(home, "colours:1", seconds_per_row=0.1)
    profile = write_profile(home / "slow.yaml", batching={"max_batch_size": 1}, stopping={"drain_delay_ms": 0})
    with Server(home, env={"ORTSERVE_MODEL": "colours", "ORTSERVE_PROFILE": profile}) as running:
        yield running


LOAD = ("-u", "4", "-r", "4", "-t", "3s")


def command(url: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "locust", "--host", url, *options]


def locust(server: Server | str, *options: str, load: tuple[str, ...] = LOAD) -> subprocess.CompletedProcess[str]:
    url = server if isinstance(server, str) else server.base_url
    called = command(url, "--headless", *load, *options)
    return subprocess.run(called, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def sent(result: subprocess.CompletedProcess[str], report: Path) -> dict[str, int]:
    """How many requests of each name a run with `--json-file` had answered or counted as failed."""
    assert result.returncode == 0, result.stdout + result.stderr
    return {entry["name"]: entry["num_requests"] for entry in json.loads(report.read_text())}


def test_a_run_within_its_thresholds_ends_with_0_and_asked_every_endpoint(server: Server) -> None:
    result = locust(server, "--max-error-rate", "0", "--max-p99-ms", "60000", "--min-rps", "0.1")
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    for name in ("/classify ", "/classify (raw body)", "/classify_batch", "/models", "/readyz"):
        assert name in output


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--min-rps", "1000000", "requests a second, fewer than"), ("--max-p99-ms", "0.001", "p99 is")],
)
def test_a_missed_threshold_ends_with_1_and_says_which(server: Server, option: str, value: str, said: str) -> None:
    result = locust(server, option, value, "--tags", "classify")
    assert result.returncode == 1
    assert said in result.stdout + result.stderr


def test_a_run_without_a_success_misses_every_threshold(server: Server, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    lenient = ("--max-error-rate", "1", "--max-p99-ms", "60000", "--min-rps", "0.001")
    result = locust(server, "--pictures", str(tmp_path), *lenient, "--tags", "classify", "batch")
    assert result.returncode == 1
    for threshold in ("max_error_rate is 1", "max_p99_ms is 60000", "min_rps is 0.001"):
        assert f"threshold missed: {threshold}, but none of" in result.stdout


def test_a_service_that_is_not_there_fails_the_run() -> None:
    result = locust(f"http://127.0.0.1:{free_port()}", "--max-p99-ms", "500", load=("-u", "2"))  # by itself, at once
    assert result.returncode == 2
    assert "error: " in result.stdout


def test_a_folder_without_pictures_is_said_at_once(server: Server, tmp_path: Path) -> None:
    result = locust(server, "--pictures", str(tmp_path))
    assert result.returncode == 2
    assert "found none: name a folder with --pictures" in result.stdout + result.stderr


class ManyModels(BaseHTTPRequestHandler):
    """Two classifiers of pictures, a detector, two embedders, one classifier of texts; writes down what was asked of them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits until its head is acknowledged: a hundred requests in 3 s, not thousands
    asked: set[tuple[str, str | None]]  # (path with its query, field `model` of the JSON)
    tasks = (("cats", "image-classification"), ("dogs", "image-classification"), ("finder", "object-detection"),
             ("small", "feature-extraction"), ("large", "feature-extraction"), ("mood", "text-classification"))  # fmt: skip

    def do_GET(self) -> None:
        self.answer({"models": [{"name": name, "task": task} for name, task in self.tasks]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        model = json.loads(body).get("model") if self.headers["Content-Type"] == "application/json" else None
        self.asked.add((self.path, model))
        self.answer({"results": []})

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Faulty(ManyModels):
    """Fails every second picture sent as a whole body, and answers batches with what is no answer to them."""

    turns = itertools.count()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({}, 500 if "top_k" in self.path and next(self.turns) % 2 else 200)


class Slow(ManyModels):
    """Answers after a second and a half; writes down every request."""

    taken: list[str]

    def do_POST(self) -> None:
        self.taken.append(self.path)
        time.sleep(1.5)  # what is slow here
        super().do_POST()


class Stub(ThreadingHTTPServer):
    """Takes many connections at once: one that the backlog has no room for is tried again a second later."""

    request_queue_size = 128


@contextmanager
def stub(handler: type[ManyModels]) -> Iterator[str]:
    """Its address."""
    with Stub(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{serving.server_port}"
        finally:
            serving.shutdown()


def test_every_model_of_the_service_is_asked_and_named_where_there_is_a_choice() -> None:
    ManyModels.asked = set()
    with stub(ManyModels) as url:
        result = locust(url, "--max-error-rate", "0", load=("-u", "2", "-t", "3s"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert {("/classify?model=cats", None), ("/classify?model=dogs", None), ("/classify?top_k=1&model=dogs", None)} <= ManyModels.asked
    assert {("/classify_batch?model=cats", None), ("/embed", "small"), ("/embed", "large"), ("/v1/embeddings", "large")} <= ManyModels.asked
    assert ("/classify_text", None) in ManyModels.asked
    assert {path.partition("?")[0] for path, _ in ManyModels.asked} == {
        *("/classify", "/classify_batch", "/detect", "/detect_batch", "/embed", "/v1/embeddings", "/classify_text"),
    }


@pytest.mark.parametrize(
    ("tag", "threshold", "said"),
    [
        ("raw", ("--max-p99-ms", "60000"), "500"),  # failed requests, of which this threshold says nothing
        ("batch", ("--max-error-rate", "0"), "KeyError"),  # an exception in the load test itself is no failed request
    ],
)
def test_thresholds_that_were_kept_excuse_nothing_else(tag: str, threshold: tuple[str, str], said: str) -> None:
    with stub(Faulty) as url:
        result = locust(url, *threshold, "--tags", tag, load=("-u", "2", "-r", "2", "-t", "2s"))
    assert result.returncode == 1
    assert "threshold missed" not in result.stdout
    assert said in result.stdout + result.stderr


def test_what_is_beside_the_tasks_is_asked_by_tag(server: Server, tmp_path: Path) -> None:
    report = ("--json-file", str(tmp_path / "report"))
    result = locust(server, "--max-error-rate", "0", "--tags", "v2", "models", "metrics", "health", *report)
    assert sent(result, tmp_path / "report.json").keys() == {
        *("/models", "/models/{name}", "/readyz", "/livez", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready"),
        *("/v2/models/{name}", "/v2/models/{name}/infer", "/v2/models/{name}/infer (binary)"),
    }


def test_the_master_alone_judges_by_the_requests_of_every_worker_to_the_last(tmp_path: Path) -> None:
    port, report = str(free_port()), tmp_path / "report.json"
    Slow.asked, Slow.taken = set(), []
    workers = ("--processes", "2", "--master-bind-port", port, "--master-port", port, "--json-file", str(report.with_suffix("")))
    thresholds = ("--max-p99-ms", "1400", "--min-rps", "1000000", "--max-error-rate", "0")
    with stub(Slow) as url:
        result = locust(url, *workers, *thresholds, "--rate", "20", "--tags", "raw", load=("-u", "2", "-r", "2", "-t", "2s"))
    assert result.returncode == 1
    missed = [line for line in result.stdout.splitlines() if line.startswith("threshold missed: ")]
    assert len(missed) == 2
    assert "p99 is" in missed[0]
    assert "requests a second, fewer than" in missed[1]
    assert sum(entry["num_requests"] for entry in json.loads(report.read_text())) == len(Slow.taken) > 0


def test_the_time_of_an_open_loop_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ManyModels.asked = set()
    with stub(ManyModels) as url:
        options = ("--headless", "--rate", "10", "-t", "4s", "--tags", "raw", "--json-file", str(report.with_suffix("")))
        process = subprocess.Popen(command(url, *options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: bool(ManyModels.asked))
            process.send_signal(signal.SIGSTOP)
            time.sleep(2.5)  # the client stands still, as a busy one would: its requests go out late
            process.send_signal(signal.SIGCONT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    late = sum(count for entry in json.loads(report.read_text()) for ms, count in entry["response_times"].items() if float(ms) > 1000)
    assert late > 2  # 15 on average; counted from the sending it is the one under way, if any


@contextmanager
def web_page(url: str, *options: str) -> Iterator[str]:
    """The address of a locust's page, which answers."""
    page = f"http://127.0.0.1:{(port := free_port())}"
    called = command(url, "--web-port", str(port), "--web-host", "127.0.0.1", *options)
    process = subprocess.Popen(called, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(page))
        yield page
    finally:
        process.terminate()
        process.wait(20)


def answers(page: str) -> bool:
    try:
        return httpx.get(page).is_success
    except httpx.TransportError:
        return False


def test_the_web_page_comes_up(server: Server) -> None:
    with web_page(server.base_url) as page:
        shown = httpx.get(page).text
        for option in ("max_p99_ms", "shape", "rate"):
            assert option in shown  # our options are in its form
        form = {"user_count": 5, "spawn_rate": 5, "shape": "ramp", "ramp_s": 30, "host": server.base_url}
        assert "using shape class" in httpx.post(f"{page}/swarm", data=form).json()["message"]


def test_the_rate_of_the_page_is_that_of_all_processes_together() -> None:
    """Of its users too, whom only the page knows of."""
    ManyModels.asked = set()
    port = str(free_port())
    with (
        stub(ManyModels) as url,
        web_page(url, "--processes", "2", "--master-bind-port", port, "--master-port", port, "--tags", "raw") as page,
    ):
        until(lambda: len(httpx.get(f"{page}/stats/requests").json().get("workers", [])) == 2)
        form = {"user_count": 10, "spawn_rate": 10, "rate": 20, "host": url}
        assert httpx.post(f"{page}/swarm", data=form).json()["success"]
        time.sleep(6)  # the window in which they are counted
        found = httpx.get(f"{page}/stats/requests").json()["stats"]
    total = next(entry["num_requests"] for entry in found if entry["name"] == "Aggregated")
    assert 60 < total < 180  # 20 a second; ten times that where each user takes the rate for its own


def test_an_open_loop_sends_at_its_rate_however_slow_the_answers(slow: Server, tmp_path: Path) -> None:
    quiet = ("--max-error-rate", "1", "--tags", "classify", "--json-file", str(tmp_path / "report"))
    waiting = sent(locust(slow, *quiet, load=("-u", "1", "-t", "3s")), tmp_path / "report.json")
    result = locust(slow, *quiet, "--rate", "60", "--answer-within-s", "0.2", load=("-t", "4s"))
    arriving = sent(result, tmp_path / "report.json")
    assert 0 < sum(waiting.values()) < 100  # one user, one request after another
    assert 120 < sum(arriving.values()) < 320  # 240 on average, by chance 80 more at most; a busy machine may lose the first second
    under_way = next(line for line in result.stdout.splitlines() if line.startswith("open loop: "))
    assert int(under_way.split()[2]) > 10
    assert any("(no answer)" in name for name in arriving)  # what was not answered is counted, not forgotten


def users_over_time(output: str) -> list[int]:
    """The users that a shape asked for, one after the other."""
    return [int(line.split("updating to ")[1].split()[0]) for line in output.splitlines() if "updating to " in line]


def test_a_ramp_begins_small_and_ends_with_everyone(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    result = locust(server, "--shape", "ramp", "--ramp-s", "5", "--max-error-rate", "0", "--html", str(report), load=("-u", "10"))
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    users = users_over_time(output)
    assert users == sorted(users)
    assert users[0] == 1
    assert users[-1] == 10
    assert len(users) >= 4
    assert "<html" in report.read_text()


def test_a_spike_comes_and_goes(server: Server) -> None:
    spike = ("--shape", "spike", "--spike-after-s", "3", "--spike-s", "3", "--spike-base", "0.2")
    result = locust(server, *spike, "--max-error-rate", "0", load=("-u", "10"))
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert users_over_time(output) == [2, 10, 2]


def test_a_shape_ends_with_the_run_time_and_misses_a_threshold_as_any_other(server: Server) -> None:
    result = locust(server, "--shape", "ramp", "--ramp-s", "3", "--rate", "30", "--min-rps", "1000000", load=("-t", "3s"))
    assert result.returncode == 1
    assert "requests a second, fewer than" in result.stdout
    assert "open loop: " in result.stdout
