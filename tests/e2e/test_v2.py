"""The Open Inference Protocol as its stock client speaks it, against a running service: every endpoint, JSON and binary, sync and async."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import yaml
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from ortserve import images
from ortserve.manifest import Manifest
from ortserve.profile import Limits
from tests.serving import ROOT, Server, until
from tests.v2 import HEADER, binary_body, binary_headers, json_body

pytestmark = pytest.mark.e2e

SCHEMAS = yaml.safe_load((ROOT / "tests" / "schemas" / "open_inference_rest.yaml").read_text(encoding="utf-8"))
SEVEN = ROOT / "examples" / "seven.png"
INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def pixels(digits_home: Path) -> NDArray[np.uint8]:
    """What `/classify` makes of the example picture, as a row of the model."""
    folder = digits_home / "models" / "digits"
    how = Manifest.read(folder / (folder / "latest").read_text().strip()).preprocessing
    assert how is not None
    return images.load(SEVEN.read_bytes(), how, Limits(), decoder="exact")[np.newaxis]


@pytest.fixture
def stock(digits: Server) -> Iterator[triton.InferenceServerClient]:
    """The stock client of the shared service."""
    with triton.InferenceServerClient(f"127.0.0.1:{digits.port}", concurrency=4) as client:
        yield client


def classified(client: httpx.Client) -> NDArray[np.float32]:
    """Every probability `/classify` gives the example picture, by class."""
    answer = client.post("/classify?top_k=10", content=SEVEN.read_bytes(), headers={"content-type": "image/png"}).raise_for_status().json()
    found = sorted((one["class_id"], one["score"]) for one in answer["predictions"])
    return np.array([score for _, score in found], np.float32)


def tensor(array: NDArray[Any], *, binary: bool, module: Any = triton) -> Any:
    sent = module.InferInput("pixels", list(array.shape), "UINT8")
    sent.set_data_from_numpy(array, binary_data=binary)
    return sent


def wanted(*, binary: bool, classes: int = 0) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=classes)]


def fits(answer: Any, name: str) -> None:
    """`answer` is what the protocol's own document calls `name`."""
    jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **SCHEMAS}).validate(answer)


# --- the stock client -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_tensors_are_answered_bit_by_bit_as_the_picture_is(
    stock: triton.InferenceServerClient, client: httpx.Client, pixels: NDArray[np.uint8], binary_in: bool, binary_out: bool
) -> None:
    expected = classified(client)
    for rows in (1, 3, 9):  # a row, some, and more than a batch
        sent = tensor(np.repeat(pixels, rows, 0), binary=binary_in)
        result = stock.infer("digits", [sent], "1", outputs=wanted(binary=binary_out), request_id="mine", timeout=10_000_000)
        assert result.get_response()["id"] == "mine"
        answered = result.as_numpy("probabilities")
        assert answered.shape == (rows, 10)
        if rows == 1:  # as /classify: a batch of one
            assert answered[0].tobytes() == expected.tobytes()
        np.testing.assert_allclose(answered, np.repeat(expected[None], rows, 0), rtol=1e-5, atol=1e-9)
    assert stock.infer("digits", [sent]).as_numpy("probabilities").tobytes() == answered.tobytes()


@pytest.mark.parametrize("binary", [True, False])
def test_classes_by_the_stock_client(
    stock: triton.InferenceServerClient, client: httpx.Client, pixels: NDArray[np.uint8], binary: bool
) -> None:
    expected = client.post("/classify?top_k=3", content=SEVEN.read_bytes(), headers={"content-type": "image/png"}).json()["predictions"]
    (row,) = stock.infer("digits", [tensor(pixels, binary=True)], outputs=wanted(binary=binary, classes=3)).as_numpy("probabilities")
    texts = [text if isinstance(text, str) else text.decode() for text in row]
    assert [tuple(text.split(":")[1:]) for text in texts] == [(str(one["class_id"]), one["label"]) for one in expected]
    assert [np.float32(text.split(":")[0]) for text in texts] == [np.float32(one["score"]) for one in expected]


def test_every_other_endpoint_by_the_stock_client(stock: triton.InferenceServerClient, pixels: NDArray[np.uint8]) -> None:
    assert stock.is_server_live()
    assert stock.is_server_ready()
    assert stock.is_model_ready("digits")
    assert stock.is_model_ready("digits", "1")
    assert not stock.is_model_ready("digits", "2")
    assert not stock.is_model_ready("other")
    assert set(stock.get_server_metadata()["extensions"]) >= {"binary_tensor_data", "classification", "statistics"}
    metadata = stock.get_model_metadata("digits", "1")
    assert metadata == stock.get_model_metadata("digits")
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    config = stock.get_model_config("digits", "1")
    assert (config["name"], config["input"][0]["data_type"], config["input"][0]["dims"]) == ("digits", "TYPE_UINT8", [32, 32, 3])
    assert stock.get_model_repository_index() == [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]
    before = stock.get_inference_statistics("digits", "1")["model_stats"][0]
    stock.infer("digits", [tensor(np.repeat(pixels, 3, 0), binary=True)])
    (after,) = stock.get_inference_statistics()["model_stats"]
    assert after["inference_count"] - before["inference_count"] == 3
    assert 1 <= after["execution_count"] - before["execution_count"] <= 2  # two slots that are free share the rows
    for name in ("success", "queue", "compute_input", "compute_infer"):
        most = 1 if name in ("success", "compute_input") else 2
        assert 1 <= after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"] <= most
        assert after["inference_stats"][name]["ns"] > before["inference_stats"][name]["ns"]
    for call in (lambda: stock.load_model("digits"), lambda: stock.unload_model("digits")):
        with pytest.raises(InferenceServerException, match="neither loaded nor unloaded") as refused:
            call()
        assert refused.value.status() == "400"


def test_several_at_once_and_their_ids(stock: triton.InferenceServerClient, pixels: NDArray[np.uint8]) -> None:
    running = [stock.async_infer("digits", [tensor(pixels, binary=True)], request_id=str(number)) for number in range(20)]
    answers = [one.get_result() for one in running]
    assert [answer.get_response()["id"] for answer in answers] == [str(number) for number in range(20)]
    assert {int(answer.as_numpy("probabilities").argmax()) for answer in answers} == {7}


def test_the_stock_client_of_asyncio(digits: Server, client: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    expected = classified(client)

    async def all_of_it() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{digits.port}") as stock:
            assert await stock.is_server_live()
            assert await stock.is_server_ready()
            assert await stock.is_model_ready("digits")
            assert (await stock.get_server_metadata())["name"] == "ortserve"
            assert (await stock.get_model_metadata("digits"))["versions"] == ["1"]
            assert (await stock.get_model_config("digits", "1"))["max_batch_size"] >= 1
            assert (await stock.get_model_repository_index())[0]["state"] == "READY"
            assert (await stock.get_inference_statistics("digits"))["model_stats"][0]["name"] == "digits"
            for binary in (True, False):
                result = await stock.infer("digits", [tensor(pixels, binary=binary, module=triton_aio)], outputs=wanted(binary=binary))
                assert result.as_numpy("probabilities")[0].tobytes() == expected.tobytes()
            with pytest.raises(InferenceServerException, match="expected outputs named probabilities"):
                await stock.infer("digits", [tensor(pixels, binary=True)], outputs=[triton.InferRequestedOutput("other")])

    asyncio.run(all_of_it())


# --- the published document -------------------------------------------------------------------------------------------


def test_answers_are_as_the_published_document_has_them(client: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    fits(client.get("/v2/").raise_for_status().json(), "metadata_server_response")
    assert client.get("/v2").json() == client.get("/v2/").json()
    fits(client.get("/v2/models/digits/versions/1").raise_for_status().json(), "metadata_model_response")
    request = json_body({"pixels": pixels}, id="a", outputs=[{"name": "probabilities"}])
    fits(json.loads(request), "inference_request")
    answer = client.post("/v2/models/digits/versions/1/infer", content=request).raise_for_status()
    fits(answer.json(), "inference_response")
    assert HEADER not in answer.headers
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/versions/1/ready"):
        assert client.get(path).status_code == 200
    with pytest.raises(jsonschema.ValidationError):
        fits({"name": "ortserve"}, "metadata_server_response")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/digits/versions/2", 404),
        ("POST", "/v2/models/digits/versions/2/infer", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/models/digits", 405),
        ("POST", INFER, 400),
        ("POST", "/v2/repository/models/digits/load", 400),
    ],
)
def test_every_error_below_v2_has_the_protocols_shape(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    fits(answer.json(), "inference_error_response")
    assert isinstance(answer.json()["error"], str)
    assert answer.headers["x-request-id"]


def test_outside_of_v2_errors_have_our_shape(client: httpx.Client) -> None:
    for path in ("/v2x", "/v1", "/models/v2"):
        assert client.get(path).json()["error"].keys() == {"code", "message", "request_id"}


# --- limits -----------------------------------------------------------------------------------------------------------


def test_more_rows_than_the_queue_holds(client: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    queue = client.get("/v2/models/digits/config").json()["dynamic_batching"]["default_queue_policy"]["max_queue_size"]
    body, length = binary_body({"pixels": np.repeat(pixels, queue + 1, 0)})
    answer = client.post(INFER, content=body, headers=binary_headers(length))
    assert answer.status_code == 413
    assert str(queue) in answer.json()["error"]
    body, length = binary_body({"pixels": np.repeat(pixels, queue, 0)})
    assert client.post(INFER, content=body, headers=binary_headers(length)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({HEADER: "-1"}, 400),
        ({HEADER: "1e3"}, 400),
        ({HEADER: "9" * 30}, 400),
        ({HEADER: str(10**17)}, 413),
        ({HEADER: "1000000"}, 400),  # more than there is
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
def test_headers_that_lie(client: httpx.Client, pixels: NDArray[np.uint8], headers: dict[str, str], status: int) -> None:
    answer = client.post(INFER, content=json_body({"pixels": pixels}), headers=headers)
    assert (answer.status_code, answer.json().keys()) == (status, {"error"})


def test_json_has_a_limit_of_its_own(client: httpx.Client) -> None:
    limit = Limits().max_json_bytes
    for body in (b" " * (limit + 1), (b" " * 65536 for _ in range(limit // 65536 + 1))):  # declared, and a flood of chunks that say nothing
        answer = client.post(INFER, content=body)
        assert answer.status_code == 413, answer.text
        assert "send tensors as binary data" in answer.json()["error"]


def test_a_body_without_json_is_one_row(client: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    answer = client.post(INFER, content=pixels.tobytes(), headers=binary_headers(0))
    assert answer.status_code == 200
    assert np.frombuffer(answer.content[int(answer.headers[HEADER]) :], np.float32).tobytes() == classified(client).tobytes()


def test_rubbish_over_a_raw_socket(digits: Server, client: httpx.Client) -> None:
    chance = random.Random(1)
    heads = (b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\n", b"GET /v2/models/../v2//%00/infer HTTP/1.1\r\nHost: x\r\n", b"")
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", digits.port), timeout=10) as connection:
            head = chance.choice(heads)
            length = chance.choice((0, 7, 100, 10**6))
            lies = [b"Content-Length: %d\r\n" % length, b"Inference-Header-Content-Length: %d\r\n" % chance.choice((0, 5, 99, 10**9))]
            connection.sendall(
                head + b"".join(chance.sample(lies, chance.randrange(3))) + b"Connection: close\r\n\r\n" + chance.randbytes(100)
            )
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            if answer:
                assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert client.get("/v2/health/ready").status_code == 200


# --- beside pictures, and elsewhere -----------------------------------------------------------------------------------


def test_tensors_and_pictures_share_batches_and_counters(digits: Server, client: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    def counted() -> tuple[float, float]:
        found = digits.metrics()
        of_digits = frozenset({("model", "digits")})
        return found["ortserve_batch_size_rows_sum", of_digits], found["ortserve_batch_size_rows_count", of_digits]

    body, length = binary_body({"pixels": pixels}, parameters={"binary_data_output": True})
    picture = SEVEN.read_bytes()
    expected = classified(client)

    def tensor_in(_: int) -> NDArray[Any]:
        answer = client.post(INFER, content=body, headers=binary_headers(length)).raise_for_status()
        return np.frombuffer(answer.content[int(answer.headers[HEADER]) :], np.float32)

    def picture_in(_: int) -> NDArray[Any]:
        answer = client.post("/classify?top_k=10", content=picture, headers={"content-type": "image/png"}).raise_for_status().json()
        return np.array([score for _, score in sorted((one["class_id"], one["score"]) for one in answer["predictions"])], np.float32)

    rows, batches = counted()
    with ThreadPoolExecutor(16) as threads:
        for answered in (*threads.map(tensor_in, range(100)), *threads.map(picture_in, range(100))):
            np.testing.assert_allclose(answered, expected, rtol=1e-5, atol=1e-9)
    rows_after, batches_after = counted()
    assert rows_after - rows == 200
    assert batches_after - batches < 200
    labels = {dict(labels).get("endpoint") for name, labels in digits.metrics() if name == "bentoml_service_request_total"}
    assert {"/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer", "/classify"} <= labels
    assert not [label for label in labels if label and "/digits" in label]


def test_a_runner_in_another_process_answers_the_same(
    digits_home: Path, client: httpx.Client, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    profile = tmp_path / "separate.yaml"
    profile.write_text(
        "description: apart\nplacement: separate\nworkers: 2\nexecution:\n  - provider: CPUExecutionProvider\n"
        "    batching: {max_batch_size: 4, max_queue_size: 32}\n"
    )
    with Server(digits_home, env={"ORTSERVE_PROFILE": str(profile)}) as server:
        stock = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        sent = tensor(np.repeat(pixels, 6, 0), binary=True)
        answered = stock.infer("digits", [sent]).as_numpy("probabilities")
        np.testing.assert_allclose(answered, np.repeat(classified(client)[None], 6, 0), rtol=1e-5, atol=1e-9)
        assert stock.is_model_ready("digits")
        until(lambda: stock.get_inference_statistics("digits")["model_stats"][0]["inference_count"] == 6)  # the runner counts them
        with pytest.raises(InferenceServerException, match="at most 32") as refused:
            stock.infer("digits", [tensor(np.repeat(pixels, 33, 0), binary=True)])
        assert refused.value.status() == "413"
        stock.close()


@pytest.mark.parametrize("binary", [True, False])
def test_tokens_of_any_length(texts_home: Path, binary: bool) -> None:
    with (
        Server(texts_home, env={"ORTSERVE_MODEL": "mood"}) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as stock,
    ):
        names = [one["name"] for one in stock.get_model_metadata("mood")["inputs"]]
        answers = []
        for rows, length in ((1, 3), (2, 3), (5, 17)):
            sent = []
            for name in names:
                array = np.full((rows, length), 0 if name == "token_type_ids" else 1, np.int64)
                one = triton.InferInput(name, [rows, length], "INT64")
                one.set_data_from_numpy(array, binary_data=binary)
                sent.append(one)
            answers.append(stock.infer("mood", sent, outputs=wanted(binary=binary)).as_numpy("probabilities"))
            assert answers[-1].shape == (rows, 3)
            np.testing.assert_allclose(answers[-1].sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(answers[1][0], answers[0][0], rtol=1e-5)
        too_long = [triton.InferInput(name, [1, 41], "INT64").set_data_from_numpy(np.ones((1, 41), np.int64)) for name in names]
        with pytest.raises(InferenceServerException, match="at most 40 tokens") as refused:
            stock.infer("mood", too_long)
        assert refused.value.status() == "400"
        for name, wrong in (("input_ids", 10**6), ("input_ids", -1), ("attention_mask", 2), ("token_type_ids", 7)):
            if name in names:
                odd = [triton.InferInput(one, [1, 3], "INT64") for one in names]
                for one in odd:
                    one.set_data_from_numpy(np.full((1, 3), wrong if one.name() == name else 0, np.int64), binary_data=binary)
                with pytest.raises(InferenceServerException, match="send what the model's tokenizer gives") as refused:
                    stock.infer("mood", odd)
                assert refused.value.status() == "400"
