"""Right answers over HTTP: one picture or many, by curl, httpx and BentoML's clients, in every format, and many callers at once."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
from openapi_spec_validator import validate
from PIL import Image

from ortserve import jpeg, resample
from tests.serving import DIGITS, ROOT, Server

pytestmark = pytest.mark.e2e

SEVEN = ROOT / "examples" / "seven.png"
PICTURES = {path.name: path for path in sorted((ROOT / "examples" / "digits").glob("*.png"))}


def label_of(path: Path) -> str:
    """The digit that an example picture shows."""
    return path.name.partition("_")[0]


def best(answer: httpx.Response) -> str:
    """The label a right answer names first."""
    assert answer.status_code == 200, answer.text
    label: str = answer.json()["predictions"][0]["label"]
    return label


# --- one picture ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
@pytest.mark.parametrize("protocol", ["--http1.1", "--http1.0", "--http2"])
def test_the_readmes_curl_answers_seven(digits: Server, protocol: str) -> None:
    command = ["curl", "--silent", "--fail", protocol, "-F", "image=@examples/seven.png", f"{digits.base_url}/classify"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert json.loads(said)["predictions"][0]["label"] == "7"


def test_the_answer(client: httpx.Client) -> None:
    answer = client.post("/classify", files={"image": SEVEN.read_bytes()})
    told = answer.json()
    assert list(told) == ["model", "version", "predictions"]
    assert (told["model"], told["version"]) == ("digits", "1")
    assert len(told["predictions"]) == 5
    assert all(list(prediction) == ["class_id", "label", "score"] for prediction in told["predictions"])
    assert all(str(prediction["class_id"]) == prediction["label"] for prediction in told["predictions"])
    scores = [prediction["score"] for prediction in told["predictions"]]
    assert scores == sorted(scores, reverse=True)
    # The shortest decimals of float32, no digits that the model did not compute.
    assert all(score == float(str(np.float32(score))) and len(str(score).replace(".", "").lstrip("0")) <= 12 for score in scores)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/*", "image/x-anything; charset=binary", "IMAGE/PNG"])
def test_the_raw_body_answers_as_the_form_does(client: httpx.Client, kind: str) -> None:
    form = client.post("/classify", files={"image": SEVEN.read_bytes()})
    raw = client.post("/classify", content=SEVEN.read_bytes(), headers={"content-type": kind})
    assert raw.json() == form.json()


def test_a_chunked_body_answers_the_same(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        data = SEVEN.read_bytes()
        yield from (data[start : start + 100] for start in range(0, len(data), 100))

    assert best(client.post("/classify", content=pieces(), headers={"content-type": "image/png"})) == "7"


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_top_k_by_field_and_by_query(client: httpx.Client, top_k: int) -> None:
    picture = SEVEN.read_bytes()
    answers = [
        client.post("/classify", files={"image": picture}, data={"top_k": str(top_k)}),
        client.post("/classify", files={"image": picture}, params={"top_k": top_k}),
        client.post("/classify", content=picture, headers={"content-type": "image/png"}, params={"top_k": top_k}),
    ]
    for answer in answers:
        assert len(answer.json()["predictions"]) == top_k
        assert answer.json() == answers[0].json()
    if top_k == 10:
        assert {prediction["label"] for prediction in answers[0].json()["predictions"]} == set("0123456789")
        assert sum(prediction["score"] for prediction in answers[0].json()["predictions"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", PICTURES)
def test_every_example_picture_is_right(client: httpx.Client, name: str) -> None:
    assert best(client.post("/classify", files={"image": PICTURES[name].read_bytes()})) == label_of(PICTURES[name])


def saved(picture: Image.Image, how: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, how, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["JPEG", "PNG", "WebP", "BMP", "GIF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_every_format(client: httpx.Client, how: str, mode: str) -> None:
    picture = Image.open(SEVEN).convert("RGB" if how in ("JPEG", "WebP") and mode == "P" else mode)
    assert best(client.post("/classify", files={"image": saved(picture, how)})) == "7"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["JPEG", "PNG", "WebP"])
def test_exif_orientation_is_applied(client: httpx.Client, how: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.open(SEVEN).convert("RGB")
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = client.post("/classify", files={"image": saved(stored, how, exif=exif)}).json()
    assert turned["predictions"][0]["label"] == "7"
    if how == "PNG":
        assert turned == client.post("/classify", files={"image": saved(upright, how)}).json()


def test_server_timing_says_where_the_time_went(client: httpx.Client) -> None:
    header = client.post("/classify", files={"image": SEVEN.read_bytes()}).headers["server-timing"]
    parts = re.fullmatch(r"decode;dur=([\d.]+), queue;dur=([\d.]+), inference;dur=([\d.]+)", header)
    assert parts is not None, header
    assert float(parts[1]) > 0
    assert float(parts[3]) > 0


# --- many pictures ----------------------------------------------------------------------------------------------------


def test_a_batch_answers_in_order(client: httpx.Client) -> None:
    paths = [*PICTURES.values(), *reversed(PICTURES.values())]
    files = [("images", (path.name, path.read_bytes(), "image/png")) for path in paths]
    answer = client.post("/classify_batch", files=files, params={"top_k": 1})
    assert answer.status_code == 200
    assert [result["predictions"][0]["label"] for result in answer.json()["results"]] == [label_of(path) for path in paths]
    assert all(len(result["predictions"]) == 1 for result in answer.json()["results"])


def test_a_batch_answers_good_and_bad_pictures_each_in_its_place(digits: Server, client: httpx.Client) -> None:
    seven = SEVEN.read_bytes()
    files: list[Any] = [
        ("images", ("good.png", seven, "image/png")),
        ("images", ("rubbish.png", b"rubbish", "image/png")),
        ("images", ("cut.png", seven[:200], "image/png")),
        ("images", ("good.png", PICTURES["3_0.png"].read_bytes(), "image/png")),
        ("images", ("empty.png", b"", "image/png")),
        ("images", ("text.txt", seven, "text/plain")),
        ("images", (None, b"http://127.0.0.1/seven.png")),
        ("images", ("tiff.tif", b"II*\0" + b"\0" * 50, "image/tiff")),
        ("images", ("good.png", seven, "application/octet-stream")),
    ]
    answer = client.post("/classify_batch", files=files, headers={"x-request-id": "mixed-batch"})
    results = answer.json()["results"]
    assert answer.status_code == 200
    assert [result["predictions"][0]["label"] if "predictions" in result else result["error"]["code"] for result in results] == [
        "7",
        "invalid_image",
        "invalid_image",
        "3",
        "invalid_image",
        "unsupported_media_type",
        "bad_request",
        "unsupported_media_type",
        "7",
    ]
    assert {result["error"]["request_id"] for result in results if "error" in result} == {"mixed-batch"}
    assert digits.log().count("[mixed-batch]") == 6


def test_a_batch_that_is_all_bad_is_still_an_answer_for_each(client: httpx.Client) -> None:
    answer = client.post("/classify_batch", files=[("images", ("x.png", b"x", "image/png"))] * 3)
    assert (answer.status_code, len(answer.json()["results"])) == (200, 3)


def test_a_batch_of_64_and_one_of_65(client: httpx.Client) -> None:
    part = ("images", ("7.png", SEVEN.read_bytes(), "image/png"))
    full = client.post("/classify_batch", files=[part] * 64)
    assert [result["predictions"][0]["label"] for result in full.json()["results"]] == ["7"] * 64
    over = client.post("/classify_batch", files=[part] * 65)
    assert (over.status_code, over.json()["error"]["code"]) == (400, "bad_request")
    assert "64" in over.json()["error"]["message"]


def test_a_batch_of_none(client: httpx.Client) -> None:
    answer = client.post("/classify_batch", files={"top_k": (None, "1")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


# --- clients ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("left_to_the_garbage_collector")
def test_bentomls_client(digits: Server) -> None:
    with bentoml.SyncHTTPClient(digits.base_url) as remote:
        one: Any = remote.classify(image=SEVEN, top_k=2)
        many: Any = remote.classify_batch(images=[SEVEN, PICTURES["0_0.png"]])
        default: Any = remote.classify(image=SEVEN)
    assert (one["predictions"][0]["label"], len(one["predictions"])) == ("7", 2)
    assert [result["predictions"][0]["label"] for result in many["results"]] == ["7", "0"]
    assert len(default["predictions"]) == 5


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("left_to_the_garbage_collector")
def test_bentomls_async_client(digits: Server) -> None:
    async def ask() -> list[str]:
        async with bentoml.AsyncHTTPClient(digits.base_url) as remote:
            # One after the other: its calls at the same time close each other's files.
            answers = [await remote.classify(image=path) for path in PICTURES.values()]
            return [answer["predictions"][0]["label"] for answer in answers]

    assert asyncio.run(ask()) == [label_of(path) for path in PICTURES.values()]


def test_64_callers_at_once_each_get_their_own_answer(digits: Server) -> None:
    paths = list(PICTURES.values())
    alone: dict[Path, Any] = {}
    with httpx.Client(base_url=digits.base_url, timeout=60) as one:
        for path in paths:
            alone[path] = one.post("/classify", files={"image": path.read_bytes()}, params={"top_k": 10}).json()["predictions"]

    async def caller(number: int) -> None:
        async with httpx.AsyncClient(base_url=digits.base_url, timeout=60) as one:
            for turn in range(6):
                path = paths[(number * 7 + turn) % len(paths)]
                answer = await one.post("/classify", files={"image": path.read_bytes()}, params={"top_k": 10})
                assert best(answer) == label_of(path)
                # The batch a picture shares changes sums in their last bits: 1e-5 of a probability.
                for got, expected in zip(answer.json()["predictions"][:1], alone[path][:1], strict=True):
                    assert got["score"] == pytest.approx(expected["score"], abs=1e-5)

    async def everybody() -> None:
        await asyncio.gather(*(caller(number) for number in range(64)))

    asyncio.run(everybody())
    largest = [value for (name, labels), value in digits.metrics().items() if name == "ortserve_batch_size_rows_sum" and labels]
    batches = [value for (name, labels), value in digits.metrics().items() if name == "ortserve_batch_size_rows_count" and labels]
    assert sum(largest) > sum(batches)  # they did share batches


def test_one_connection_serves_many_requests(client: httpx.Client) -> None:
    ports = set()
    for _ in range(5):
        answer = client.post("/classify", files={"image": SEVEN.read_bytes()})
        ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
        client.post("/classify", files={"image": b"rubbish"})
        client.get("/nope")
    assert len(ports) == 1


# --- facts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package() -> dict[str, bytes]:
    """The files of the committed package."""
    with tarfile.open(DIGITS) as archive:
        return {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]


def test_the_facts_are_those_of_the_package(client: httpx.Client, package: dict[str, bytes]) -> None:
    manifest = json.loads(package["manifest.json"])
    facts = client.get("/models/digits").json()
    assert (facts["name"], facts["version"], facts["profile"]) == ("digits", "1", "default")
    assert facts["provider"] in ("CPUExecutionProvider", "CUDAExecutionProvider")
    assert facts["batched_by"] == ("brief_batching" if facts["provider"] == "CPUExecutionProvider" else "batching")
    assert (facts["jpeg_decode"], facts["resize"]) == (jpeg.way().name, resample.way().name)
    assert sum(facts["nodes_by_provider"].values()) >= 1
    assert facts["nodes_by_provider"].get(facts["provider"], 0) >= 1
    variant = manifest["variants"][facts["precision"]]
    assert facts["sha256"] == variant["sha256"] == hashlib.sha256(package[variant["file"]]).hexdigest()
    parity = facts["manifest"]["variants"][facts["precision"]]["parity"]
    assert parity == variant["parity"]
    assert parity["passed"] is True
    assert facts["manifest"]["labels"] == list("0123456789")
    listed = client.get("/models").json()
    assert listed["profile"] == "default"
    assert [(model["name"], model["sha256"], model["task"]) for model in listed["models"]] == [
        ("digits", facts["sha256"], "image-classification")
    ]


def test_the_facts_name_no_path_of_this_machine(client: httpx.Client, digits_home: Path) -> None:
    text = client.get("/models/digits").text
    assert str(digits_home) not in text
    assert str(ROOT) not in text


@pytest.mark.parametrize("path", ["/", "/models", "/models/digits", "/livez", "/readyz", "/docs.json", "/schema.json"])
def test_get_and_head(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert head.content == b""
    assert len(head.headers["x-request-id"]) == 32
    if path != "/models/digits":  # the served facts may change in length between two calls
        assert head.headers["content-length"] == got.headers["content-length"]


def test_health(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready", "workers": 1}


def test_the_schema_and_the_document_describe_what_is_there(client: httpx.Client) -> None:
    document = client.get("/docs.json").json()
    validate(document)
    for path, item in document["paths"].items():
        for method in item:
            answer = client.request(method, path.replace("{name}", "digits").replace("{version}", "1"))
            empty = 400 if path.startswith("/v2") else 415  # what a body that is none is answered with
            assert answer.status_code == (200 if method == "get" or path == "/v2/repository/index" else empty), path
    assert {route["route"] for route in client.get("/schema.json").json()["routes"]} == {"/classify", "/classify_batch"}


def test_metrics_count_what_was_asked(digits: Server, client: httpx.Client) -> None:
    def answered(endpoint: str, status: int) -> float:
        wanted = {("endpoint", endpoint), ("http_response_code", str(status))}
        return sum(
            value for (name, labels), value in digits.metrics().items() if name == "bentoml_service_request_total" and wanted <= labels
        )

    asked = (("/classify", 200), ("/classify", 400), ("unmatched", 404), ("/models/{name}", 404))
    before = [answered(*key) for key in asked]
    client.post("/classify", files={"image": SEVEN.read_bytes()})
    client.post("/classify", files={"image": b"rubbish"})
    client.get("/a-path-that-a-caller-invented")
    client.get("/models/a-name-that-a-caller-invented")
    assert [answered(*key) - value for key, value in zip(asked, before, strict=True)] == [1, 1, 1, 1]
    assert "invented" not in client.get("/metrics").text
