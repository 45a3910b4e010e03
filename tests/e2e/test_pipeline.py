"""examples/pipeline: one request whose answer takes two models, as the same steps asked one by one; and its errors."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.packages import add_package, picture
from tests.serving import ROOT, Server

pytestmark = pytest.mark.e2e

ASTRONAUT = ROOT / "examples" / "faces" / "astronaut.jpg"
PATH = "/detect_and_classify"


@pytest.fixture(scope="module")
def client(faces_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The example, on the detector of examples/faces and a classifier of colours."""
    home = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(faces_home / "models", home / "models")
    add_package(home, "colours:1")
    with (
        Server(home, target="examples.pipeline.pipeline:Pipeline", env={"ORTSERVE_MODEL": "faces,colours"}) as server,
        httpx.Client(base_url=server.base_url, timeout=60) as client,
    ):
        yield client


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_the_answer_is_that_of_the_steps_asked_one_by_one(client: httpx.Client) -> None:
    many = Image.new("RGB", (1100, 560), (30, 30, 60))
    for left, tint in ((0, (1.0, 0.8, 0.8)), (560, (0.8, 0.8, 1.0))):
        bands = [
            band.point(lambda value, factor=factor: int(value * factor))
            for band, factor in zip(Image.open(ASTRONAUT).split(), tint, strict=True)
        ]
        many.paste(Image.merge("RGB", bands), (left, 20))
    sent = png(many)
    answer = client.post(PATH, files={"image": ("p.png", sent, "image/png")}, data={"score_threshold": "0.5", "top_k": "2"})
    assert answer.status_code == 200, answer.text
    objects = answer.json()["objects"]
    assert len(objects) == 2
    detections = client.post("/detect", files={"image": sent}, data={"score_threshold": "0.5"}).json()["detections"]
    assert [{key: each[key] for key in ("label", "score", "box")} for each in objects] == [
        {key: each[key] for key in ("label", "score", "box")} for each in detections
    ]
    for each in objects:
        box = each["box"]
        piece = many.crop((int(box["x1"]), int(box["y1"]), round(box["x2"]), round(box["y2"])))
        alone = client.post("/classify", files={"image": png(piece)}, data={"top_k": "2"}).json()
        assert each["predictions"] == alone["predictions"]


def test_a_picture_without_objects_asks_no_classifier(client: httpx.Client) -> None:
    assert client.post(PATH, files={"image": ("p.png", picture("red", 300), "image/png")}).json() == {"objects": []}


@pytest.mark.parametrize(("content", "fields", "status", "code"), [
    (b"no picture", {}, 400, "invalid_image"),
    (ASTRONAUT.read_bytes(), {"top_k": "9", "score_threshold": "0.5"}, 422, "invalid_parameter"),  # the second model's own refusal
], ids=["the picture", "the second model"])  # fmt: skip
def test_an_error_of_either_model_is_answered_as_if_it_had_been_asked_alone(
    client: httpx.Client, content: bytes, fields: dict[str, str], status: int, code: str
) -> None:
    answer = client.post(PATH, files={"image": ("p.jpg", content, "image/jpeg")}, data=fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


def test_the_models_own_endpoints_and_the_new_one_are_described(client: httpx.Client) -> None:
    paths = client.get("/docs.json").json()["paths"]
    assert {"/detect", "/detect_batch", "/classify", "/classify_batch", PATH} <= set(paths)
    assert "/embed" not in paths
