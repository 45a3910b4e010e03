"""A detector's raw output, decoded and suppressed by numpy: written apart from the graph's own decoding, which it checks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ortserve import nms
from ortserve.export.detection_form import Form
from ortserve.export.detection_graph import Tail
from ortserve.session import Tensors


def decoded(raw: list[NDArray[np.float32]], tail: Tail) -> Tensors:
    """The candidates of raw outputs (scores before boxes where there are two): `boxes`, `scores` and, with one label a box, `classes`."""
    form = tail.form
    boxes, scores, classes = _parts(raw, form)
    first, second = boxes[..., :2], boxes[..., 2:]
    if form.box_format == "cxcywh":
        half = second * np.float32(0.5)
        boxes = np.concatenate([first - half, first + half], axis=-1)
    elif form.box_format == "xywh":
        boxes = np.concatenate([first, first + second], axis=-1)
    if form.relative:
        boxes = boxes * np.array([tail.width, tail.height] * 2, np.float32)
    if classes is not None:
        return {"boxes": boxes, "scores": scores[..., 0], "classes": classes}
    scores = _activated(scores, form)
    scores = {"none": scores, "first": scores[..., 1:], "last": scores[..., :-1]}[form.background]
    if form.labels_per_box == "all":
        return {"boxes": boxes, "scores": np.ascontiguousarray(scores.transpose(0, 2, 1))}
    return {"boxes": boxes, "scores": scores.max(axis=-1), "classes": scores.argmax(axis=-1)}


def _parts(raw: list[NDArray[np.float32]], form: Form) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64] | None]:
    """Boxes, scores, and classes where the model names them itself."""
    if form.layout == "scores-boxes":
        return raw[1], raw[0], None
    rows = raw[0].transpose(0, 2, 1) if form.layout == "yolov8" else raw[0]
    if form.layout == "end-to-end":
        return rows[..., :4], rows[..., 4:5], rows[..., 5].astype(np.int64)
    if form.layout == "yolov5":
        return rows[..., :4], rows[..., 5:] * rows[..., 4:5], None
    return rows[..., :4], rows[..., 4:], None


def _activated(scores: NDArray[np.float32], form: Form) -> NDArray[np.float32]:
    if form.score_activation == "none":
        return scores
    exact = scores.astype(np.float64)
    if form.score_activation == "sigmoid":
        return (0.5 * (1.0 + np.tanh(0.5 * exact))).astype(np.float32)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def suppressed(found: Tensors, inputs: Tensors, tail: Tail) -> Tensors:
    """`detections` float32[rows,max_detections,6] and `count` int64[rows] of candidates, under each row's own thresholds and classes."""
    rows, most = len(found["boxes"]), tail.max_detections
    detections, count = np.zeros((rows, most, 6), np.float32), np.zeros(rows, np.int64)
    for row in range(rows):
        boxes, scores, classes = nms.candidates(
            found["boxes"][row],
            found["scores"][row],
            found["classes"][row] if "classes" in found else None,
            score_threshold=inputs["score_threshold"][row],
            wanted=inputs["class_mask"][row],
            per_class=tail.candidates_per_class,
        )
        kept = nms.suppress(boxes, scores, classes, iou_threshold=inputs["iou_threshold"][row], most=most)
        count[row] = len(kept)
        detections[row, : len(kept)] = np.concatenate(
            [boxes[kept], scores[kept, np.newaxis], classes[kept, np.newaxis].astype(np.float32)], axis=1
        )
    return {"detections": detections, "count": count}
