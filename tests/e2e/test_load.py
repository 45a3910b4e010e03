"""The load test against the real service: its thresholds set the exit status, its page comes up, every endpoint is asked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.packages import add_package, write_profile
from tests.serving import ROOT, Server, free_port

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


def locust(server: Server, *options: str, load: tuple[str, ...] = ("-u", "4", "-r", "4", "-t", "3s")) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "--host", server.base_url, "--headless", *load, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


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


def test_failed_requests_are_more_than_an_error_rate_of_0(server: Server, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = locust(server, "--pictures", str(tmp_path), "--max-error-rate", "0", "--tags", "classify", "batch")
    assert result.returncode == 1
    assert "of the requests failed" in result.stdout + result.stderr


def test_a_folder_without_pictures_is_said_at_once(server: Server, tmp_path: Path) -> None:
    result = locust(server, "--pictures", str(tmp_path))
    assert result.returncode == 2
    assert "found none: name a folder with --pictures" in result.stdout + result.stderr


class ManyModels(BaseHTTPRequestHandler):
    """Two classifiers of pictures, two embedders, one classifier of texts; writes down what was asked of them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits until its head is acknowledged: a hundred requests in 3 s, not thousands
    asked: set[tuple[str, str | None]]  # (path with its query, field `model` of the JSON)
    tasks = (("cats", "image-classification"), ("dogs", "image-classification"), ("small", "feature-extraction"),
             ("large", "feature-extraction"), ("mood", "text-classification"))  # fmt: skip

    def do_GET(self) -> None:
        self._answer({"models": [{"name": name, "task": task} for name, task in self.tasks]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        model = json.loads(body).get("model") if self.headers["Content-Type"] == "application/json" else None
        self.asked.add((self.path, model))
        self._answer({"results": []})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_every_model_of_the_service_is_asked_and_named_where_there_is_a_choice() -> None:
    ManyModels.asked = set()
    with ThreadingHTTPServer(("127.0.0.1", 0), ManyModels) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        command = [sys.executable, "-m", "locust", "--host", f"http://127.0.0.1:{stub.server_port}", "--headless", "-u", "2", "-t", "3s"]
        result = subprocess.run([*command, "--max-error-rate", "0"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        stub.shutdown()
    assert result.returncode == 0, result.stdout + result.stderr
    assert {("/classify?model=cats", None), ("/classify?model=dogs", None), ("/classify?top_k=1&model=dogs", None)} <= ManyModels.asked
    assert {("/classify_batch?model=cats", None), ("/embed", "small"), ("/embed", "large"), ("/v1/embeddings", "large")} <= ManyModels.asked
    assert ("/classify_text", None) in ManyModels.asked
    assert {path.partition("?")[0] for path, _ in ManyModels.asked} == {
        *("/classify", "/classify_batch", "/embed", "/v1/embeddings", "/classify_text"),
    }


def test_the_web_page_comes_up(server: Server) -> None:
    port = free_port()
    command = [sys.executable, "-m", "locust", "--host", server.base_url, "--web-port", str(port), "--web-host", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        page = ""
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    page = answer.read().decode()
                break
            except OSError:
                time.sleep(0.1)  # polls a foreign process, which has no event to wait for
        for option in ("max_p99_ms", "shape", "rate"):
            assert option in page  # our options are in its form
        form = b"user_count=5&spawn_rate=5&shape=ramp&ramp_s=30&host=" + server.base_url.encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/swarm", data=form, timeout=10) as answer:
            assert "using shape class" in json.load(answer)["message"]
    finally:
        process.terminate()
        process.wait(20)


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
    result = locust(server, "--shape", "ramp", "--rate", "30", "--min-rps", "1000000", load=("-t", "3s"))
    assert result.returncode == 1
    assert "requests a second, fewer than" in result.stdout
    assert "open loop: " in result.stdout
