"""Decoding and suppression inside the graph: the same boxes as numpy's, torchvision's and Ultralytics' own, on hundreds of outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from ortserve import nms
from ortserve.export.detection_form import Form
from ortserve.export.detection_graph import Tail, attach
from ortserve.export.detection_reference import decoded, suppressed
from ortserve.session import Tensors
from tests import reference
from tests.detectors import SIDE, echo, random_raw

FORMS = {
    "yolov8": Form(layout="yolov8", boxes=400, classes=5),
    "yolov5": Form(layout="yolov5", boxes=400, classes=3),
    "yolov5, one class": Form(layout="yolov5", boxes=300, classes=1),
    "end-to-end": Form(layout="end-to-end", boxes=60, classes=4, box_format="xyxy"),
    "relative, background first": Form(
        layout="scores-boxes", boxes=300, classes=3, box_format="xyxy", relative=True, background="first", labels_per_box="all"
    ),
    "logits, background last": Form(
        layout="scores-boxes", boxes=300, classes=2, box_format="xywh", background="last", score_activation="softmax", labels_per_box="all"
    ),
    "sigmoid, best": Form(layout="scores-boxes", boxes=300, classes=4, score_activation="sigmoid"),
}


def run(
    form: Form, raw: list[NDArray[np.float32]], inputs: Tensors, *, most: int = 50, per_class: int | None = None, opset: int = 17
) -> Tensors:
    """What the graph answers to raw outputs under thresholds."""
    model = attach(echo(form, opset), Tail(form, SIDE, SIDE, True, most, per_class))
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answer = session.run(names, {**{f"given{index}": part for index, part in enumerate(raw)}, **inputs})
    return dict(zip(names, answer, strict=True))


def thresholds(rows: int, classes: int, score: float = 0.25, iou: float = 0.5) -> Tensors:
    return {
        "score_threshold": np.full(rows, score, np.float32),
        "iou_threshold": np.full(rows, iou, np.float32),
        "class_mask": np.ones((rows, classes), np.bool_),
    }


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_graph_equals_numpy_under_mixed_thresholds(form: Form, opset: int) -> None:
    random = np.random.default_rng(opset)
    for rows in (1, 2, 7):
        raw = random_raw(random, form, rows)
        inputs = thresholds(rows, form.classes)
        inputs["score_threshold"] = random.uniform(0, 0.6, rows).astype(np.float32)
        inputs["iou_threshold"] = random.uniform(0.1, 0.9, rows).astype(np.float32)
        inputs["class_mask"] = random.random((rows, form.classes)) < 0.7
        have = run(form, raw, inputs, opset=opset)
        want = decoded(raw, Tail(form, SIDE, SIDE, True, 50))
        for name, tensor in want.items():
            np.testing.assert_allclose(have[name], tensor, rtol=1e-6, atol=2e-6)
        again = suppressed(have, inputs, Tail(form, SIDE, SIDE, True, 50))
        np.testing.assert_array_equal(have["count"], again["count"])
        np.testing.assert_array_equal(have["detections"], again["detections"])
        assert have["count"].sum() > 0 or not inputs["class_mask"].any()


def test_suppression_equals_torchvisions_on_hundreds_of_outputs() -> None:
    form = FORMS["yolov8"]
    random = np.random.default_rng(1)
    for score, iou in ((0.05, 0.3), (0.25, 0.5), (0.4, 0.7)):
        raw = random_raw(random, form, 100)
        have = run(form, raw, thresholds(100, form.classes, score, iou))
        boxes, scores, classes = (torch.from_numpy(have[name]) for name in ("boxes", "scores", "classes"))
        for row in range(100):
            above = scores[row] > score
            kept = batched_nms(boxes[row][above].double(), scores[row][above].double(), classes[row][above], iou)[:50]
            want = torch.cat([boxes[row][above], scores[row][above][:, None], classes[row][above][:, None].float()], dim=1)[kept]
            assert have["count"][row] == len(want)
            np.testing.assert_array_equal(have["detections"][row, : len(want)], want.numpy())


def test_boxes_are_those_of_ultralytics_on_hundreds_of_outputs(tmp_path: Path) -> None:
    """Same boxes, IoU over 0.99 and scores to 1e-3; some hundred rows, each case under thresholds of its own."""
    random = np.random.default_rng(2)
    forms = [Form(layout="yolov8", boxes=boxes, classes=classes) for boxes in (200, 700) for classes in (1, 5, 80)]
    cases = [
        (form, random_raw(random, form, 10), score, iou)
        for form in forms
        for score, iou in ((0.05, 0.45), (0.25, 0.7), (0.4, 0.5), (0.001, 0.6))
    ]
    want = reference.ultralytics_suppression(
        [raw[0] for _, raw, _, _ in cases], [(score, iou, 300, form.classes) for form, _, score, iou in cases], tmp_path
    )
    compared = 0
    for (form, raw, score, iou), theirs in zip(cases, want, strict=True):
        have = run(form, raw, thresholds(10, form.classes, score, iou), most=min(300, form.boxes))
        for row, boxes in enumerate(theirs):
            ours = have["detections"][row, : have["count"][row]]
            assert len(ours) == len(boxes), (form, score, iou)
            ours, boxes = (found[np.lexsort((found[:, 5], -found[:, 4]))] for found in (ours, boxes))  # equals in one order
            np.testing.assert_allclose(ours[:, 4], boxes[:, 4], atol=1e-3)
            np.testing.assert_array_equal(ours[:, 5], boxes[:, 5])
            assert overlaps(ours, boxes).min(initial=1.0) > 0.99
            compared += len(boxes)
    assert compared > 4000


def overlaps(one: NDArray[np.float32], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of the boxes in the same place of both lists."""
    shared = np.maximum(np.minimum(one[:, 2:4], other[:, 2:4]) - np.maximum(one[:, :2], other[:, :2]), 0).prod(axis=1)
    areas = [(boxes[:, 2:4] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    return np.asarray(shared / (areas[0] + areas[1] - shared))


def test_yolox_post_processing_gives_the_same_boxes() -> None:
    """Its published `postprocess`, written down again: objectness times the best class, then torchvision's batched_nms."""
    form = Form(layout="yolov5", boxes=500, classes=6)
    [raw] = random_raw(np.random.default_rng(3), form, 60)
    have = run(form, [raw], thresholds(60, form.classes, 0.1, 0.45), most=100)
    for row in range(60):
        prediction = torch.from_numpy(raw[row]).double()
        corners = torch.cat([prediction[:, :2] - prediction[:, 2:4] / 2, prediction[:, :2] + prediction[:, 2:4] / 2], dim=1)
        confidence, label = prediction[:, 5:].max(dim=1)
        score = prediction[:, 4] * confidence
        above = score >= 0.1
        kept = batched_nms(corners[above], score[above], label[above], 0.45)[:100]
        want = torch.cat([corners[above], score[above][:, None], label[above][:, None]], dim=1)[kept].numpy()
        assert have["count"][row] == len(want)
        np.testing.assert_allclose(have["detections"][row, : len(want)], want, rtol=1e-5, atol=1e-4)


def test_only_the_best_of_a_class_are_looked_at_where_the_model_says_so() -> None:
    form = Form(layout="scores-boxes", boxes=200, classes=3, box_format="xyxy", labels_per_box="all")
    raw = random_raw(np.random.default_rng(4), form, 2)
    inputs = thresholds(2, form.classes, 0.0, 1.0)  # nothing is suppressed
    have = run(form, raw, inputs, most=150, per_class=10)
    for row in range(2):
        found = have["detections"][row, : have["count"][row]]
        for label in range(3):
            best = np.sort(raw[0][row, :, label])[::-1][:10]
            np.testing.assert_array_equal(found[found[:, 5] == label][:, 4], best)


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["yolov8", "relative, background first"])
def test_a_row_with_scores_that_are_no_numbers_says_so_and_its_neighbour_does_not(name: str, damage: float) -> None:
    form = FORMS[name]
    raw = random_raw(np.random.default_rng(5), form, 2)
    (raw[0][0, -1, 3:4] if form.layout == "yolov8" else raw[0][0, 3, -1:])[...] = damage
    have = run(form, raw, thresholds(2, form.classes))
    assert have["count"][0] == -1
    assert have["count"][1] > 0


def test_an_empty_picture_has_no_boxes_and_zeros_fill_the_rest() -> None:
    form = FORMS["yolov8"]
    raw = random_raw(np.random.default_rng(6), form, 1)
    have = run(form, raw, thresholds(1, form.classes, 1.0))
    assert have["count"].tolist() == [0]
    assert not have["detections"].any()


def test_numpy_suppression_keeps_boxes_without_area_and_the_first_of_equals() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5], [0, 0, 10, 10]], np.float32)
    scores = np.array([0.5, 0.5, 0.4, 0.3], np.float32)
    kept = nms.suppress(boxes, scores, np.array([0, 0, 0, 1]), iou_threshold=0.5, most=10)
    assert kept.tolist() == [0, 2, 3]
    assert nms.suppress(boxes, scores, np.array([0, 0, 0, 1]), iou_threshold=0.5, most=2).tolist() == [0, 2]
