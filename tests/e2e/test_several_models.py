"""Several models in one service: each with a batcher, a queue, limits and a process of its own; requests say which one they mean."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml as bentoml_client
import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import yaml
from tritonclient.utils import InferenceServerException

from tests.packages import add_package, picture
from tests.serving import DIGITS, ROOT, Server, bentoml, until

pytestmark = pytest.mark.e2e

PNG = {"content-type": "image/png"}
SEVEN = (ROOT / "examples" / "seven.png").read_bytes()
CPU = {"provider": "CPUExecutionProvider", "session": {"intra_op_num_threads": 1}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `digits`, `colours`, and `slow`, which takes some 0.2 s for each row."""
    folder = tmp_path_factory.mktemp("home")
    bentoml(folder, "models", "import", str(DIGITS))
    add_package(folder, "colours:1")
    add_package(folder, "slow:1", seconds_per_row=0.2)
    return folder


def write(path: Path, **changes: Any) -> str:
    """A profile with those three, the slow one with a queue of two rows."""
    slow = {"model": "slow", "execution": [{**CPU, "batching": {"max_batch_size": 1, "max_queue_size": 2}}]}
    models = changes.pop("models", [{"model": "digits"}, {"model": "colours"}, slow])
    path.write_text(yaml.safe_dump({"description": "made by a test", "execution": [CPU], "models": models, **changes}))
    return str(path)


@pytest.fixture(scope="module", params=["in_process", "separate"])
def server(home: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """All three: in one process; and in two runners behind two API workers, the slow one apart."""
    folder = tmp_path_factory.mktemp("several")
    profile = Path(write(folder / "several.yaml", placement=request.param))
    if request.param == "separate":
        changed = yaml.safe_load(profile.read_text())
        changed["models"][2]["runner"] = "second"
        profile.write_text(yaml.safe_dump({**changed, "workers": 2}))
    with Server(home, env={"ORTSERVE_PROFILE": str(profile), "TMPDIR": str(folder)}) as started:
        started.placement = request.param  # type: ignore[attr-defined]
        yield started


def classify(server: Server, content: bytes, query: str = "") -> httpx.Response:
    return httpx.post(f"{server.base_url}/classify{query}", content=content, headers=PNG, timeout=60)


def best(answer: httpx.Response) -> tuple[str, str]:
    assert answer.status_code == 200, answer.text
    return answer.json()["model"], answer.json()["predictions"][0]["label"]


def test_all_are_listed_each_with_what_really_runs(server: Server) -> None:
    listed = httpx.get(f"{server.base_url}/models").json()
    assert [model["name"] for model in listed["models"]] == ["digits", "colours", "slow"]
    facts = {name: httpx.get(f"{server.base_url}/models/{name}").json() for name in ("digits", "colours", "slow")}
    assert [facts[name]["batching"]["max_queue_size"] for name in ("digits", "slow")] == [256, 2]
    processes = [facts[name]["pid"] for name in ("digits", "colours", "slow")]
    apart = server.placement == "separate"  # type: ignore[attr-defined]
    assert (processes[0] == processes[1], processes[0] == processes[2]) == (True, not apart)
    assert httpx.get(f"{server.base_url}/models/cats").json()["error"]["message"] == "no such model: this service has digits, colours, slow"
    assert httpx.get(f"{server.base_url}/readyz").json() == {"status": "ready", "workers": 4 if apart else 1}


@pytest.mark.parametrize(
    ("query", "content", "expected"),
    [
        ("?model=digits", SEVEN, ("digits", "7")),
        ("?model=digits:1&top_k=2", SEVEN, ("digits", "7")),
        ("?model=colours", picture("green"), ("colours", "green")),
    ],
)
def test_a_request_says_which_model_it_means(server: Server, query: str, content: bytes, expected: tuple[str, str]) -> None:
    assert best(classify(server, content, query)) == expected


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("left_to_the_garbage_collector")
def test_as_a_form_field_in_a_batch_and_through_bentomls_client(server: Server, tmp_path: Path) -> None:
    file = {"image": ("a.png", picture("red"), "image/png")}
    assert best(httpx.post(f"{server.base_url}/classify", files=file, data={"model": "colours"})) == ("colours", "red")
    files = [("images", ("a.png", picture(colour), "image/png")) for colour in ("red", "blue")]
    answer = httpx.post(f"{server.base_url}/classify_batch?model=colours", files=files).json()
    assert [result["predictions"][0]["label"] for result in answer["results"]] == ["red", "blue"]
    (tmp_path / "blue.png").write_bytes(picture("blue"))
    with bentoml_client.SyncHTTPClient(server.base_url) as client:
        typed = client.classify(image=tmp_path / "blue.png", model="colours", top_k=1)
    assert (typed["model"], typed["predictions"][0]["label"]) == ("colours", "blue")


@pytest.mark.parametrize(("query", "words"), [
    ("", "model: expected one of 'digits', 'colours', 'slow', got none: /classify has several models to choose from"),
    ("?model=cats", "model: expected one of 'digits', 'colours', 'slow', which /classify has here"),
    ("?model=digits:2", "model: expected one of 'digits', 'colours', 'slow', which /classify has here"),
    ("?model=colours&top_k=4", "top_k: expected a whole number from 1 to 3, got '4'"),  # digits has ten
])  # fmt: skip
def test_a_request_that_means_none_of_them_is_told_which_there_are(server: Server, query: str, words: str) -> None:
    answer = classify(server, SEVEN, query)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_parameter")
    assert answer.json()["error"]["message"] == words


def test_each_answers_tensors_by_its_own_name_and_has_statistics_of_its_own(server: Server) -> None:
    names = ["digits", "colours", "slow"]
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as stock:
        assert [(one["name"], one["state"]) for one in stock.get_model_repository_index()] == [(name, "READY") for name in names]
        for name in names:
            [given] = stock.get_model_metadata(name)["inputs"]
            before = [one["inference_count"] for one in stock.get_inference_statistics()["model_stats"]]
            rows = np.zeros((1, *given["shape"][1:]), np.uint8)
            sent = triton.InferInput(given["name"], list(rows.shape), given["datatype"]).set_data_from_numpy(rows)
            answer = stock.infer(name, [sent])
            assert answer.get_response()["model_name"] == name
            expected = [count + (name == other) for other, count in zip(names, before, strict=True)]
            until(lambda wanted=expected: [one["inference_count"] for one in stock.get_inference_statistics()["model_stats"]] == wanted)
            assert stock.get_model_config(name)["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == (
                2 if name == "slow" else 256
            )
        with pytest.raises(InferenceServerException, match="this service has digits, colours, slow"):
            stock.get_model_metadata("cats")
        rows = np.repeat(rows, 3, 0)  # of the slow model, whose queue is of two
        sent = triton.InferInput(given["name"], list(rows.shape), given["datatype"]).set_data_from_numpy(rows)
        with pytest.raises(InferenceServerException, match="at most 2") as refused:
            stock.infer("slow", [sent])
        assert refused.value.status() == "413"


def test_a_model_whose_queue_is_full_refuses_its_own_callers_and_nobody_elses(server: Server) -> None:
    stop = threading.Event()

    def press() -> list[int]:
        statuses = []
        while not stop.is_set():
            statuses.append(classify(server, picture("red"), "?model=slow").status_code)
        return statuses

    def waiting() -> bool:
        samples = server.metrics()
        return samples[("ortserve_queue_size_rows", frozenset({("model", "slow")}))] >= 2

    with ThreadPoolExecutor(8) as pool:
        pressing = [pool.submit(press) for _ in range(8)]
        try:
            until(waiting)
            for _ in range(20):
                assert best(classify(server, SEVEN, "?model=digits")) == ("digits", "7")
        finally:
            stop.set()
        statuses = [status for run in pressing for status in run.result()]
    assert set(statuses) == {200, 429}
    samples = server.metrics()

    def refused(model: str) -> float:
        return samples[("ortserve_refusals_total", frozenset({("model", model), ("reason", "queue_full")}))]

    assert refused("slow") == statuses.count(429)
    assert refused("digits") == refused("colours") == 0


def test_the_workers_of_a_service_count_once_however_many_models_they_hold(server: Server) -> None:
    apart = server.placement == "separate"  # type: ignore[attr-defined]
    samples = server.metrics()
    assert samples[("ortserve_workers", frozenset())] == (4 if apart else 1)
    assert samples[("ortserve_worker_starts_total", frozenset())] == (4 if apart else 1)


def test_the_document_has_the_paths_of_all_tasks_and_the_parameter(server: Server) -> None:
    document = httpx.get(f"{server.base_url}/docs.json").json()
    assert {"/classify", "/classify_batch"} <= set(document["paths"])
    assert "/detect" not in document["paths"]
    assert "model" in [parameter["name"] for parameter in document["paths"]["/classify"]["post"]["parameters"]]


def test_models_of_two_tasks_each_have_their_paths(texts_home: Path, home: Path, tmp_path: Path) -> None:
    for name in ("colours", "minilm", "mood"):
        source = (texts_home if name in ("minilm", "mood") else home) / "models" / name
        target = tmp_path / "home" / "models" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    with Server(tmp_path / "home", env={"ORTSERVE_MODEL": "colours,minilm,mood"}) as server:
        assert best(classify(server, picture("red"))) == ("colours", "red")  # one model of each task: none has to be named
        for path, body in (("/embed", {"inputs": "a text"}), ("/classify_text", {"inputs": "a text", "model": "mood"})):
            assert httpx.post(server.base_url + path, json=body).status_code == 200
        answer = httpx.post(f"{server.base_url}/v1/embeddings", json={"input": "a text", "model": "mood"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, "model: expected 'minilm', which /v1/embeddings has here")


@pytest.mark.parametrize(("models", "words"), [
    ([{"model": "digits"}, {"model": "cats"}], "error: model cats is not in the BentoML store"),
    ([{"model": "digits"}, {"model": "colours", "execution": [{**CPU, "memory_limit_bytes": 4096}]}],
     "error: model colours takes "),
])  # fmt: skip
def test_one_model_that_cannot_be_served_ends_the_start_with_one_line(
    home: Path, tmp_path: Path, models: list[dict[str, Any]], words: str
) -> None:
    server = Server(home, env={"ORTSERVE_PROFILE": write(tmp_path / "mine.yaml", models=models)})
    try:
        assert server.wait_exit(120) == 1
        last = server.log().splitlines()[-1]
        assert last.startswith(words), server.log()
        assert "Traceback" not in server.log()
    finally:
        server.stop()


def test_the_shipped_profile_serves_each_with_its_own_settings(home: Path) -> None:
    add_package(home, "faces:1", precision="int8")  # no detector, but of that name: the profile's settings are what is looked at
    with Server(home, env={"ORTSERVE_PROFILE": "multi-model"}) as server:
        facts = {name: httpx.get(f"{server.base_url}/models/{name}").json() for name in ("digits", "colours", "faces")}
    assert [facts[name]["precision"] for name in facts] == ["fp32", "fp32", "int8"]
    assert [facts[name]["batching"]["max_queue_size"] for name in facts] == [128, 128, 32]
    assert [facts[name]["memory_limit_bytes"] for name in facts] == [2**31, 2**31, None]
    assert all(json.dumps(facts[name]["session"]["intra_op_num_threads"]) == "1" for name in facts)
