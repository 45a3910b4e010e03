"""Object detection: parameters, a picture's way in and its boxes' way out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ortserve import tasks
from ortserve.errors import InferenceError, InvalidParameter, ModelError
from ortserve.execution import Execution
from ortserve.manifest import Detection, Manifest, Preprocessing, Source, TensorSpec
from ortserve.profile import Images, Profile
from ortserve.tasks.object_detection import ObjectDetection

LABELS = ("face", "cat", "stop sign", "7")
HOW = Preprocessing(mode="letterbox", height=64, width=96, antialias=False, pad_value=114, mean=(0, 0, 0), std=(1, 1, 1))


def manifest(nms: str = "graph", **changes: Any) -> Manifest:
    """A detector's manifest of four classes and 30 boxes."""
    inputs = [TensorSpec(name="pixels", dtype="uint8", shape=("batch", 64, 96, 3))]
    if nms == "graph":
        inputs += [TensorSpec(name=name, dtype="float32", shape=("batch",)) for name in ("score_threshold", "iou_threshold")]
        inputs.append(TensorSpec(name="class_mask", dtype="bool", shape=("batch", 4)))
    facts: dict[str, Any] = {
        "name": "net",
        "task": "object-detection",
        "inputs": tuple(inputs),
        "outputs": (),
        "labels": LABELS,
        "preprocessing": HOW,
        "detection": Detection(
            layout="yolov8", boxes=30, box_format="cxcywh", relative=False, background="none", score_activation="none",
            labels_per_box="best", nms=nms, max_detections=20,
        ),
        "max_batch": 8,
        "variants": {},
        "source": Source(kind="onnx", reference="x.onnx", weights="its own"),
        "versions": {},
        "created_at": "2025-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Manifest(**{**facts, **changes})


def task(nms: str = "graph", **changes: Any) -> ObjectDetection:
    profile = Profile(description="test", execution=(Execution(provider="CPUExecutionProvider"),), **changes)
    return ObjectDetection(manifest(nms), Path(), profile)


def jpeg(width: int = 960, height: int = 320, orientation: int = 1) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), (10, 200, 30)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def test_table_knows_it() -> None:
    profile = Profile(description="test", execution=(Execution(provider="CPUExecutionProvider"),))
    assert isinstance(tasks.load(manifest(), Path(), profile), ObjectDetection)


@pytest.mark.parametrize("missing", ["preprocessing", "detection", "labels", "inputs"])
def test_manifest_without_what_it_needs_is_refused(missing: str) -> None:
    profile = Profile(description="test", execution=(Execution(provider="CPUExecutionProvider"),))
    empty: Any = () if missing in ("labels", "inputs") else None
    with pytest.raises(ModelError, match="build it again"):
        tasks.load(manifest(**{missing: empty}), Path(), profile)


def test_parameters_have_defaults_and_ranges() -> None:
    parameters = task().parameters({})
    assert (parameters.score_threshold, parameters.iou_threshold, parameters.max_detections) == (0.25, 0.7, 20)
    assert parameters.wanted.all()
    chosen = task().parameters({"score_threshold": ".5", "iou_threshold": "1e-05", "max_detections": "3", "classes": "stop sign, 0,3"})
    assert (chosen.score_threshold, chosen.iou_threshold, chosen.max_detections) == (0.5, 1e-5, 3)
    assert chosen.wanted.tolist() == [True, False, True, True]
    assert task().parameters({"classes": '"cat"'}).wanted.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_threshold": "1.5"}, "score_threshold: expected a number from 0 to 1"),
        ({"score_threshold": "nan"}, "score_threshold"),
        ({"score_threshold": ""}, "score_threshold"),
        ({"iou_threshold": "-0.1"}, "iou_threshold"),
        ({"iou_threshold": "\u0660.\u0665"}, "iou_threshold"),
        ({"max_detections": "21"}, "from 1 to 20"),
        ({"max_detections": "0"}, "from 1 to 20"),
        ({"classes": "dog,cta"}, "no class 'dog'"),
        ({"classes": "fase"}, "did you mean 'face'"),
        ({"classes": "7"}, "no class '7'"),  # a label that is a number is named by its index
        ({"classes": ""}, "no class ''"),
        ({"score_treshold": "0.5"}, "did you mean 'score_threshold'"),
    ],
)
def test_parameters_out_of_range_are_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        task().parameters(fields)


def test_a_model_that_needs_no_suppression_refuses_its_threshold() -> None:
    with pytest.raises(InvalidParameter, match="leave it out"):
        task("none").parameters({"iou_threshold": "0.5"})


def test_thresholds_travel_with_the_row() -> None:
    detector = task()
    row = detector.preprocess(jpeg(), detector.parameters({"score_threshold": "0.5", "iou_threshold": "0.3", "classes": "cat"}))
    assert row.tensors["pixels"].shape == (1, 64, 96, 3)
    assert row.tensors["score_threshold"].tolist() == [0.5]
    assert row.tensors["iou_threshold"][0] == np.float32(0.3)
    assert row.tensors["class_mask"].tolist() == [[False, True, False, False]]
    assert set(task("service").preprocess(jpeg(), detector.parameters({})).tensors) == {"pixels"}


@pytest.mark.parametrize("decoder", ["exact", "draft"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_in_pixels_of_the_upright_picture(orientation: int, decoder: Any) -> None:
    detector = task(images=Images(decoder=decoder))
    parameters = detector.parameters({})
    row = detector.preprocess(jpeg(orientation=orientation), parameters)
    upright = (960, 320) if orientation < 5 else (320, 960)
    detections = np.zeros((1, 20, 6), np.float32)
    # the left upper quarter of what the picture covers in the input
    placed = row.context
    x, y = placed.corner
    detections[0, 0] = [x, y, x + placed.fitted[0] / 2, y + placed.fitted[1] / 2, 0.9, 2]
    answer = detector.postprocess({"detections": detections, "count": np.array([1])}, row, parameters)
    assert answer["image"] == {"width": upright[0], "height": upright[1]}
    [found] = answer["detections"]
    assert (found["class_id"], found["label"], found["score"]) == (2, "stop sign", 0.9)
    assert found["box"] == pytest.approx({"x1": 0, "y1": 0, "x2": upright[0] / 2, "y2": upright[1] / 2}, abs=upright[1] / 100)
    # Where there is no picture there is grey, and all of the picture is where it is said to be.
    pixels = row.tensors["pixels"][0]
    inside = pixels[y : y + placed.fitted[1], x : x + placed.fitted[0]]
    assert np.abs(inside.astype(int) - (10, 200, 30)).max() <= 4
    assert (pixels == 114).all(axis=2).sum() == 64 * 96 - placed.fitted[0] * placed.fitted[1]


def test_service_suppression_answers_as_the_graph_would() -> None:
    detector = task("service")
    parameters = detector.parameters({"score_threshold": "0.3", "iou_threshold": "0.5", "max_detections": "2"})
    row = detector.preprocess(jpeg(960, 640), parameters)
    boxes = np.array([[[10, 10, 50, 50], [11, 10, 50, 50], [10, 10, 50, 51], [0, 0, 5, 5], [60, 0, 90, 40]]], np.float32)
    outputs = {"boxes": boxes, "scores": np.array([[0.5, 0.9, 0.4, 0.2, 0.35]], np.float32), "classes": np.array([[0, 0, 1, 0, 3]])}
    found = detector.postprocess(outputs, row, parameters)["detections"]
    assert [(item["label"], item["score"]) for item in found] == [("face", 0.9), ("cat", 0.4)]
    assert found[0]["box"] == {"x1": 110.0, "y1": 100.0, "x2": 500.0, "y2": 500.0}


@pytest.mark.parametrize("nms", ["graph", "service"])
def test_scores_that_are_no_numbers_are_the_models_fault(nms: str) -> None:
    detector = task(nms)
    parameters = detector.parameters({})
    row = detector.preprocess(jpeg(), parameters)
    broken = {
        "graph": {"detections": np.zeros((1, 20, 6), np.float32), "count": np.array([-1])},
        "service": {"boxes": np.zeros((1, 2, 4), np.float32), "scores": np.array([[0.5, np.nan]]), "classes": np.zeros((1, 2), int)},
    }[nms]
    with pytest.raises(InferenceError, match="no numbers"):
        detector.postprocess(broken, row, parameters)
    boxes = np.full((1, 20, 6), np.inf, np.float32)
    with pytest.raises(InferenceError, match="no numbers"):
        task().postprocess({"detections": boxes, "count": np.array([1])}, row, parameters)
