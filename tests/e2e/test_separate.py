"""`placement: separate`: the model in a process of its own, behind API workers that only decode; in one `bentoml serve` and in two."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from ortserve.tune.ports import free_port
from tests.packages import COLOURS, add_package, picture, write_profile
from tests.rush import at_once
from tests.serving import ROOT, SERVE_ONE, Server, until, value

pytestmark = pytest.mark.e2e

WORKERS = 2
NAMES = tuple(COLOURS)
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the model `slow`: some 0.2 s for each row, whatever the batch."""
    folder = tmp_path_factory.mktemp("home")
    add_package(folder, "slow:1", seconds_per_row=0.2)
    return folder


@pytest.fixture(scope="module")
def temp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of `slow`."""
    return tmp_path_factory.mktemp("temp")


@pytest.fixture(scope="module")
def slow(home: Path, temp: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two API workers and a runner: batches of two, four places in the queue."""
    mine = write_profile(
        tmp_path_factory.mktemp("slow") / "slow.yaml",
        placement="separate",
        workers=WORKERS,
        batching={"max_batch_size": 2, "max_queue_size": 4},
        limits={"request_timeout_ms": 60_000},
        stopping={"drain_delay_ms": 100},
    )
    with Server(home, env={"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "slow", "TMPDIR": str(temp)}) as server:
        yield server


def classify(server: Server, colour: str) -> httpx.Response:
    """The answer to a picture of that colour, over a connection of its own, so that every worker gets some."""
    return httpx.post(f"{server.base_url}/classify", content=picture(colour), headers=PNG, timeout=120)


def best(answer: httpx.Response) -> str:
    label: str = answer.json()["predictions"][0]["label"]
    return label


def code(answer: httpx.Response) -> str:
    error: str = answer.json()["error"]["code"]
    return error


def status(server: Server, path: str = "/readyz") -> int:
    return httpx.get(server.base_url + path, timeout=60).status_code


def workers(server: Server, service: str) -> list[psutil.Process]:
    """The living processes of that service, of one `bentoml serve`."""
    return [process for process in server.processes() if {"_bentoml_impl.worker.service", service} <= {*process.cmdline()}]


# --- the same answers ------------------------------------------------------------------------------------------------


def test_every_answer_is_that_of_one_process_bit_for_bit(digits: Server, digits_home: Path, tmp_path: Path) -> None:
    mine = write_profile(tmp_path / "mine.yaml", placement="separate", workers=WORKERS)
    pictures = [path.read_bytes() for path in sorted((ROOT / "examples" / "digits").glob("*.png"))]

    def answers(server: Server) -> list[str]:
        with httpx.Client(base_url=server.base_url, timeout=60) as client:
            texts = [client.post("/classify", params={"top_k": 10}, content=data, headers=PNG).text for data in pictures]
            files = [("images", (f"{index}.png", data, "image/png")) for index, data in enumerate([*pictures[:3], b"none"])]
            many = client.post("/classify_batch", files=files).json()["results"]
        return [*texts, *map(str, many[:3]), many[3]["error"]["code"]]

    long = tmp_path / ("long" * 20)  # too long for a unix socket's name
    long.mkdir()
    with Server(digits_home, env={"ORTSERVE_PROFILE": mine, "TMPDIR": str(long)}) as server:
        assert answers(server) == answers(digits)
        assert "listens on a port of 127.0.0.1" in server.log()


# --- who does what ---------------------------------------------------------------------------------------------------


def test_only_the_runner_has_the_model_and_it_is_the_one_shown(slow: Server) -> None:
    (runner,) = workers(slow, "model_runner")
    apis = workers(slow, "model_service")
    assert len(apis) == WORKERS
    assert "onnxruntime" in Path(f"/proc/{runner.pid}/maps").read_text()
    for process in apis:
        assert "onnxruntime" not in Path(f"/proc/{process.pid}/maps").read_text()
    facts = httpx.get(f"{slow.base_url}/models/slow", timeout=60).json()
    assert (facts["pid"], facts["provider"], facts["precision"]) == (runner.pid, "CPUExecutionProvider", "fp32")
    assert facts["batching"]["max_queue_size"] == 4


def test_one_page_of_metrics_counts_all_three(slow: Server) -> None:
    before = value(slow, "ortserve_batch_size_rows_sum")
    with ThreadPoolExecutor(4) as pool:
        assert [best(answer) for answer in pool.map(lambda colour: classify(slow, colour), NAMES)] == list(NAMES)
    assert value(slow, "ortserve_batch_size_rows_sum") - before == 3  # the runner's
    assert value(slow, "ortserve_decode_duration_seconds_count") >= 3  # the API workers'
    assert value(slow, "ortserve_workers") == WORKERS + 1
    assert value(slow, "ortserve_ready_workers") == value(slow, "ortserve_expected_workers") == WORKERS + 1
    assert value(slow, "ortserve_provider_active_workers", provider="CPUExecutionProvider") == 1
    assert value(slow, "ortserve_queue_capacity_rows") == 4


# --- too much, and gone ----------------------------------------------------------------------------------------------


def test_one_queue_for_all_api_workers_refuses_what_is_too_much(slow: Server) -> None:
    colours = [NAMES[index % 3] for index in range(24)]
    taken, refused = at_once(colours, lambda colour: classify(slow, colour))
    assert len(taken) >= 4
    assert all(best(answer) == colour for answer, colour in taken)
    assert len(refused) >= 8  # six fit at once in all, however many API workers there are, and a few more as those finish
    assert {code(answer) for answer in refused} == {"queue_full"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


def test_a_caller_that_leaves_costs_no_compute(slow: Server) -> None:
    rows = value(slow, "ortserve_batch_size_rows_sum")
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(classify, slow, colour) for colour in ("red", "green", "blue", "red")]
        until(lambda: value(slow, "ortserve_queue_size_rows") >= 2 or all(other.done() for other in others))
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{slow.base_url}/classify", content=picture("blue"), headers=PNG, timeout=httpx.Timeout(60, read=0.01))
        assert [best(other.result()) for other in others] == ["red", "green", "blue", "red"]
    until(lambda: value(slow, "ortserve_queue_size_rows") == 0)
    assert value(slow, "ortserve_batch_size_rows_sum") - rows in (4, 5)  # 5 where the machine was so slow that its turn had come


# --- killed ----------------------------------------------------------------------------------------------------------


class Load:
    """Callers that ask without a pause until they are told to stop; every answer must be right or say what is wrong."""

    def __init__(self, server: Server, callers: int) -> None:
        self.seen: Counter[str] = Counter()
        self._enough = threading.Event()
        self._pool = ThreadPoolExecutor(callers)
        self._asking = [self._pool.submit(self._ask, server, NAMES[index % 3]) for index in range(callers)]

    def _ask(self, server: Server, colour: str) -> None:
        while not self._enough.is_set():
            try:
                answer = classify(server, colour)
            except httpx.TransportError:
                self.seen["broken"] += 1
                continue
            if answer.status_code == 200:
                assert best(answer) == colour
                self.seen["right"] += 1
            else:
                assert answer.status_code == 429 or answer.headers["retry-after"], answer.text
                self.seen[code(answer)] += 1
                self._enough.wait(0.1)

    def stop(self) -> Counter[str]:
        """What was seen, by code."""
        self._enough.set()
        for future in self._asking:
            future.result()  # raises what was asserted
        self._pool.shutdown()
        return self.seen


def test_a_killed_runner_fails_what_it_had_and_service_resumes_by_itself(slow: Server) -> None:
    load = Load(slow, 4)
    until(lambda: load.seen["right"] >= 4)
    (runner,) = workers(slow, "model_runner")
    runner.kill()
    until(lambda: load.seen["runner_unavailable"] >= 4)  # every caller had a row there
    assert status(slow) == 503
    assert status(slow, "/livez") == 200  # outside a container another is started
    until(lambda: status(slow) == 200 and status(slow) == 200)
    before = load.seen["right"]
    until(lambda: load.seen["right"] >= before + 4)
    seen = load.stop()
    assert set(seen) <= {"right", "runner_unavailable", "queue_full"}, seen
    assert [best(classify(slow, colour)) for colour in NAMES] == list(NAMES)
    assert httpx.get(f"{slow.base_url}/models/slow", timeout=60).json()["pid"] != runner.pid


def test_in_a_container_a_dead_runner_makes_livez_fail(digits_home: Path, tmp_path: Path) -> None:
    """BentoML starts no other there: whoever runs the container has to, and learns of it so."""
    mine = write_profile(tmp_path / "mine.yaml", placement="separate", workers=1, stopping={"drain_delay_ms": 0})
    with Server(digits_home, env={"ORTSERVE_PROFILE": mine, "BENTOML_CONTAINERIZED": "true"}) as server:
        assert status(server, "/livez") == 200
        (runner,) = workers(server, "model_runner")
        runner.kill()
        until(lambda: status(server, "/livez") == 503)
        answer = httpx.get(f"{server.base_url}/livez", timeout=60)
        assert code(answer) == "process_lost"
        assert status(server) == 503


def test_a_killed_api_worker_takes_only_its_own_callers_with_it(slow: Server) -> None:
    until(lambda: status(slow) == 200)
    load = Load(slow, 4)
    until(lambda: load.seen["right"] >= 4)
    workers(slow, "model_service")[0].kill()
    before = load.seen["right"]
    until(lambda: load.seen["right"] >= before + 4)
    seen = load.stop()
    assert set(seen) <= {"right", "broken", "queue_full"}, seen
    assert seen["broken"] <= 4  # those whose connections the dead one had
    until(lambda: value(slow, "ortserve_queue_size_rows") == 0)  # its places were given back
    until(lambda: status(slow) == 200)


# --- ended -----------------------------------------------------------------------------------------------------------


def test_a_service_told_to_stop_answers_everything_it_has_read(slow: Server, temp: Path) -> None:
    """The last test that has `slow`."""
    until(lambda: status(slow) == 200 and status(slow) == 200)
    before = value(slow, "ortserve_batch_size_rows_sum")
    with ThreadPoolExecutor(4) as pool:
        asked = [(colour, pool.submit(classify, slow, colour)) for colour in (*NAMES, "red")]
        until(lambda: value(slow, "ortserve_batch_size_rows_sum") - before + value(slow, "ortserve_queue_size_rows") >= 4)
        slow.process.send_signal(signal.SIGTERM)
        for colour, future in asked:
            answer = future.result()
            assert answer.status_code == 200, answer.text
            assert best(answer) == colour
    assert slow.wait_exit() == 0
    assert slow.processes() == []
    left = [path.name for path in temp.iterdir()]
    assert [name for name in left if not name.startswith("bentoml-client-")] == []  # those are BentoML's, of the processes killed above
    assert "Traceback" not in slow.log()


# --- two machines ----------------------------------------------------------------------------------------------------


def test_a_runner_by_itself_serves_api_workers_by_http_and_may_go(home: Path, tmp_path: Path) -> None:
    add_package(home, "colours:1")
    mine = write_profile(tmp_path / "mine.yaml", placement="separate", workers=WORKERS, stopping={"drain_delay_ms": 100})
    env = {"ORTSERVE_PROFILE": mine, "ORTSERVE_MODEL": "colours"}
    port = free_port()
    depends = {**env, "BENTOML_SERVE_DEPENDS": f"model_runner=http://127.0.0.1:{port}"}
    api = Server(home, command=SERVE_ONE, env=depends)  # first: machines start in any order
    try:
        with Server(home, command=SERVE_ONE, env={**env, "BENTOML_SERVE_SERVICE_NAME": "model_runner"}, port=port) as runner:
            api.wait_ready()
            assert [best(classify(api, colour)) for colour in NAMES] == list(NAMES)
            assert (status(runner, "/livez"), status(runner)) == (200, 200)
            assert httpx.post(f"{runner.base_url}/classify", timeout=60).status_code == 404  # it answers its API workers only
            assert value(runner, "ortserve_batch_size_rows_sum") == 3
            assert (value(runner, "ortserve_workers"), value(api, "ortserve_workers")) == (1, WORKERS)
            assert (value(runner, "ortserve_expected_workers"), value(api, "ortserve_expected_workers")) == (1, WORKERS)
            served_by = httpx.get(f"{api.base_url}/models/colours", timeout=60).json()["pid"]
            assert served_by in [process.pid for process in runner.processes()]
            load = Load(api, 4)
            until(lambda: load.seen["right"] >= 10)
            runner.process.send_signal(signal.SIGTERM)
            assert runner.wait_exit() == 0  # although its API workers stay
            until(lambda: load.seen["runner_unavailable"] >= 4)
            assert set(load.stop()) == {"right", "runner_unavailable"}, load.seen
            assert status(api) == 503
    finally:
        api.stop()
    assert "was lost" not in api.log()  # no row was: it said that it goes
    assert "Traceback" not in api.log()


def test_a_runner_that_its_profile_does_not_place_apart_ends_its_start_with_one_line(digits_home: Path) -> None:
    server = Server(digits_home, command=SERVE_ONE, env={"BENTOML_SERVE_SERVICE_NAME": "model_runner"})
    try:
        assert server.wait_exit(120) == 1
        assert "expected separate to serve model_runner" in server.log().splitlines()[-1]
        assert "Traceback" not in server.log()
    finally:
        server.stop()
