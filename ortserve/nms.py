"""Suppression of overlapping boxes in numpy: for models whose graph leaves it to the service, and what the graph's own is checked with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.int64], *, iou_threshold: float | np.float32, most: int
) -> NDArray[np.intp]:
    """Indices of at most `most` boxes that stay, best score first, equals by index.

    Greedy and class by class: a box goes where a better one of its class overlaps it by more than `iou_threshold`, as in
    `torchvision.ops.batched_nms`. Boxes [n,4] are x1, y1, x2, y2. One step for each box that stays, each over all boxes that are left.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, classes = boxes[order], classes[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(int(best))
        overlap = _iou(boxes[best], areas[best], boxes[left], areas[left])
        left = left[(overlap <= iou_threshold) | (classes[left] != classes[best])]
    return order[kept]


def _iou(box: NDArray[Any], area: Any, others: NDArray[Any], areas: NDArray[Any]) -> NDArray[Any]:
    """Intersection over union of one box with others; 0 where one of the two has no area."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[:, 0] * sides[:, 1]
    union = area + areas - shared
    overlap: NDArray[Any] = np.divide(shared, union, out=np.zeros_like(shared), where=(union > 0) & (area > 0) & (areas > 0))
    return overlap


def candidates(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    classes: NDArray[np.int64] | None,
    *,
    score_threshold: float | np.float32,
    wanted: NDArray[np.bool_],
    per_class: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """The boxes, scores and classes over the threshold and of a wanted class.

    With `classes` [A], `scores` are [A]: one label a box. Without, they are [C,A] and a box comes once for each of its classes; of each
    class then only the `per_class` best.
    """
    if classes is not None:
        index = np.flatnonzero((scores > score_threshold) & wanted[classes])
        return boxes[index], scores[index], classes[index]
    chosen = (scores > score_threshold) & wanted[:, np.newaxis]
    if per_class is not None and per_class < scores.shape[1]:
        chosen &= scores >= np.partition(scores, -per_class, axis=1)[:, -per_class, np.newaxis]
    label, index = np.nonzero(chosen)
    return boxes[index], scores[label, index], label.astype(np.int64)
