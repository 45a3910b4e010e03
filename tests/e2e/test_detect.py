"""A real detector behind a real service: the right boxes on a real picture, thresholds of callers who share a batch, bad input."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageOps

from tests.packages import write_profile
from tests.serving import ROOT, Server

pytestmark = pytest.mark.e2e

ASTRONAUT = ROOT / "examples" / "faces" / "astronaut.jpg"
FACE = (178, 59, 272, 179)  # looked at: from the hairline to the chin, from ear to ear


@pytest.fixture(scope="module")
def server(faces_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The package of README, on one worker that waits for others to share its batch."""
    file = tmp_path_factory.mktemp("detect") / "profile.yaml"
    profile = write_profile(file, batching={"max_batch_size": 8, "max_queue_delay_ms": 300})
    with Server(faces_home, env={"ORTSERVE_MODEL": "faces", "ORTSERVE_PROFILE": profile}) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        yield client


def encoded(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG" if not options else "JPEG", **options)
    return file.getvalue()


def overlap(box: dict[str, float], want: tuple[float, float, float, float]) -> float:
    """Intersection over union."""
    have = (box["x1"], box["y1"], box["x2"], box["y2"])
    sides = [max(0.0, min(have[axis + 2], want[axis + 2]) - max(have[axis], want[axis])) for axis in (0, 1)]
    areas = [(corners[2] - corners[0]) * (corners[3] - corners[1]) for corners in (have, want)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def test_the_face_is_found_where_it_is(client: httpx.Client) -> None:
    answer = client.post("/detect", content=ASTRONAUT.read_bytes(), headers={"Content-Type": "image/jpeg"}).json()
    assert answer["model"] == "faces"
    assert answer["image"] == {"width": 512, "height": 512}
    [face] = answer["detections"]
    assert (face["class_id"], face["label"]) == (0, "face")
    assert face["score"] > 0.99
    assert overlap(face["box"], FACE) > 0.95


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_boxes_are_those_of_the_picture_as_it_is_seen(client: httpx.Client, orientation: int) -> None:
    """A wide picture whose camera lay on its side: stored turned, answered upright."""
    wide = Image.new("RGB", (1300, 700), (90, 110, 90))
    wide.paste(Image.open(ASTRONAUT), (600, 100))
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(wide.transpose(turned), quality=92, exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(stored))).size == (1300, 700)
    answer = client.post("/detect", files={"image": stored}).json()
    assert answer["image"] == {"width": 1300, "height": 700}
    [face] = answer["detections"]
    assert overlap(face["box"], (FACE[0] + 600, FACE[1] + 100, FACE[2] + 600, FACE[3] + 100)) > 0.9


def test_many_faces_of_all_sizes_and_a_picture_without(client: httpx.Client) -> None:
    many = Image.new("RGB", (1200, 800), (30, 30, 60))
    wanted = []
    for place, side in (((0, 0), 512), ((600, 20), 256), ((900, 50), 200), ((620, 400), 330), ((1000, 500), 160)):
        many.paste(Image.open(ASTRONAUT).resize((side, side)), place)
        wanted.append(tuple(place[axis % 2] + FACE[axis] * side / 512 for axis in range(4)))
    files = [("images", encoded(many)), ("images", encoded(Image.new("RGB", (300, 200), (200, 30, 40)))), ("images", b"no picture")]
    first, second, third = client.post("/detect_batch", files=files, data={"score_threshold": "0.5"}).json()["results"]
    assert len(first["detections"]) == 5
    for want in wanted:
        assert max(overlap(found["box"], want) for found in first["detections"]) > 0.6  # the smallest is 29 pixels wide
    scores = [found["score"] for found in first["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert second == {"image": {"width": 300, "height": 200}, "detections": []}
    assert third["error"]["code"] == "invalid_image"


def test_callers_who_share_a_batch_have_thresholds_of_their_own(client: httpx.Client, server: Server) -> None:
    """All at once, so that they meet in one batch; each answer is the one it would have had alone."""
    asked = [
        {"score_threshold": "0.02"},
        {"score_threshold": "0.02", "iou_threshold": "0.05"},
        {"score_threshold": "0.02", "max_detections": "1"},
        {"score_threshold": "1"},
        {"classes": "face"},
        {"classes": "0", "score_threshold": "0.001"},
        {},
    ]
    picture = ASTRONAUT.read_bytes()

    def ask(fields: dict[str, str]) -> Any:
        return client.post("/detect", files={"image": picture}, data=fields).json()["detections"]

    alone = [ask(fields) for fields in asked]
    with ThreadPoolExecutor(len(asked)) as callers:
        together = list(callers.map(ask, asked))
    assert [[(found["box"], found["class_id"]) for found in answer] for answer in together] == [
        [(found["box"], found["class_id"]) for found in answer] for answer in alone
    ]
    assert len(alone[5]) > len(alone[0]) > len(alone[2]) == 1
    assert alone[3] == []
    sizes = {name: value for (name, _), value in server.metrics().items() if name.startswith("ortserve_batch_size_rows")}
    assert sizes["ortserve_batch_size_rows_sum"] > sizes["ortserve_batch_size_rows_count"], "no two of them met in a batch"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_threshold": "1.01"}, "score_threshold: expected a number from 0 to 1"),
        ({"iou_threshold": "half"}, "iou_threshold: expected a number from 0 to 1"),
        ({"max_detections": "301"}, "max_detections: expected a whole number from 1 to 300"),
        ({"classes": "fase"}, "did you mean 'face'?"),
        ({"top_k": "1"}, "unknown parameter 'top_k'"),
    ],
)
def test_bad_parameters_are_422(client: httpx.Client, fields: dict[str, str], message: str) -> None:
    answer = client.post("/detect", files={"image": ASTRONAUT.read_bytes()}, data=fields)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_parameter"
    assert message in answer.json()["error"]["message"]


def test_only_this_tasks_paths_are_there_and_documented(client: httpx.Client) -> None:
    assert client.post("/classify", files={"image": ASTRONAUT.read_bytes()}).status_code == 404
    paths = client.get("/docs.json").json()["paths"]
    assert {"/detect", "/detect_batch"} <= paths.keys()
    assert "/classify" not in paths
    names = {parameter["name"] for parameter in paths["/detect"]["post"]["parameters"]}
    assert names == {"score_threshold", "iou_threshold", "max_detections", "classes", "model"}
    manifest = client.get("/models/faces").json()["manifest"]
    assert manifest["detection"]["nms"] == "graph"


def test_bentomls_own_client_is_answered(server: Server) -> None:
    code = (  # in a process of its own: it leaves its folder to the garbage collector, which warns
        "import bentoml, pathlib, sys\n"
        "with bentoml.SyncHTTPClient(sys.argv[1]) as client:\n"
        "    print(len(client.detect(image=pathlib.Path(sys.argv[2]), score_threshold=0.5, classes='face')['detections']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, server.base_url, str(ASTRONAUT)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr
