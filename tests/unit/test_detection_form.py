"""A detector's layout, told from its shapes and its class count, or given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ortserve.errors import SourceError
from ortserve.export.detection_form import dense_counts, tell, with_scale
from ortserve.export.options import Options

SIZE = (640, 640)


def told(*shapes: tuple[int, ...], labels: int | None = None, size: tuple[int, int] = SIZE, **flags: Any) -> tuple[Any, int]:
    return tell(shapes, size, labels, Options(source="x.onnx", labels=Path(), **flags), "x.onnx")


@pytest.mark.parametrize(
    ("shape", "labels", "layout", "boxes", "classes"),
    [
        ((84, 8400), None, "yolov8", 8400, 80),
        ((84, 8400), 80, "yolov8", 8400, 80),
        ((5, 8400), 1, "yolov8", 8400, 1),
        ((25200, 85), None, "yolov5", 25200, 80),
        ((8400, 85), 80, "yolov5", 8400, 80),
        ((25200, 6), None, "yolov5", 25200, 1),
        ((25200, 6), 1, "yolov5", 25200, 1),
        ((300, 6), 80, "end-to-end", 300, 80),
        ((300, 6), 1, "end-to-end", 300, 1),
        ((1000, 9), 4, "yolov5", 1000, 4),  # grids of another kind: the class count decides
        ((8, 1000), 4, "yolov8", 1000, 4),
    ],
)
def test_layouts_of_one_output(shape: tuple[int, int], labels: int | None, layout: str, boxes: int, classes: int) -> None:
    form, scores = told(shape, labels=labels)
    assert (form.layout, form.boxes, form.classes, scores) == (layout, boxes, classes, 0)
    assert form.box_format == ("xyxy" if layout == "end-to-end" else "cxcywh")


def test_few_boxes_of_many_classes_are_known_by_the_grid() -> None:
    size = (64, 64)  # 84 boxes on three grids: fewer than rows
    assert 84 in dense_counts(size)
    assert told((604, 84), size=size)[0].layout == "yolov8"
    assert told((84, 605), size=size)[0].layout == "yolov5"


def test_one_class_or_end_to_end_is_asked_for_where_both_fit() -> None:
    with pytest.raises(SourceError, match="--detection-layout yolov5 or end-to-end"):
        told((2000, 6), labels=1)
    assert told((2000, 6), labels=1, detection_layout="yolov5")[0].layout == "yolov5"


def test_two_outputs_in_any_order() -> None:
    form, scores = told((4420, 4), (4420, 2), labels=1)
    assert (form.layout, form.classes, form.background, scores, form.labels_per_box) == ("scores-boxes", 1, "first", 1, "all")
    form, scores = told((300, 80), (300, 4), labels=None, box_format="cxcywh", score_activation="sigmoid", labels_per_box="best")
    assert (form.classes, form.background, scores, form.box_format, form.labels_per_box) == (80, "none", 0, "cxcywh", "best")
    assert told((300, 81), (300, 4), background_class="last")[0].classes == 80


@pytest.mark.parametrize(
    ("shapes", "labels", "flags", "message"),
    [
        (((84, 8400),), 20, {}, "give --labels with as many lines"),
        (((1000,),), None, {}, "export its detection head alone"),
        (((10, 4), (10, 4)), None, {}, "which of them are the scores"),
        (((10, 4), (9, 2)), None, {}, "export these two alone"),
        (((10, 5), (10, 4)), 2, {}, "--background-class"),
        (((84, 8400),), None, {"background_class": "first"}, "leave it out"),
        (((300, 6),), 3, {"labels_per_box": "all"}, "leave it out"),
        (((84, 8400),), None, {"detection_layout": "scores-boxes"}, "leave the flag out"),
    ],
)
def test_what_cannot_be_read_names_the_remedy(shapes: Any, labels: int | None, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        told(*shapes, labels=labels, **flags)


def test_scale_is_told_from_a_run_or_given() -> None:
    form, _ = told((84, 8400))
    assert with_scale(form, 1.3, Options(source="x")).relative
    assert not with_scale(form, 630.0, Options(source="x")).relative
    assert not with_scale(form, 1.3, Options(source="x", box_scale="pixels")).relative
