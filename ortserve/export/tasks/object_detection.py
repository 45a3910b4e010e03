"""Object detectors: every candidate against the reference's, every suppressed box against numpy's, and the boxes a caller would see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ortserve.export.compare import difference
from ortserve.export.detection_graph import Tail
from ortserve.export.detection_reference import suppressed
from ortserve.export.limits import least_agreement, tolerance
from ortserve.export.options import Options
from ortserve.export.pictures import picture_probes, read_folder
from ortserve.export.tasks import Advance, Case, Probe, Samples
from ortserve.manifest import Agreement, Difference, Precision, Preprocessing, TensorSpec
from ortserve.session import Tensors

# What a caller would be shown: Ultralytics' and our own default threshold.
SHOWN = 0.25
SHOWN_IOU = 0.7
# COCO's strict overlap. Above it rounding alone decides: of examples/faces in int8 99 % of the boxes agree at 0.5, 98 % at 0.75 and 89 %
# at 0.9, where a box of 40 pixels may be off by one on each side, which nobody would see.
SAME_IOU = 0.75
# One box more or less should move the agreement by a per cent at most.
MIN_BOXES = 100
MIN_PICTURES = 10
# Thresholds of the probe's rows, in turns: requests that share a batch differ in them.
_SCORES = (0.25, 0.05, 0.5, 0.001)
_IOUS = (0.7, 0.45, 0.6, 0.3)

# fp32: only the order of operations differs; measured 1e-6 of the input's side and 1e-6 of a score at most.
# fp16: as for classifiers, one rounding is 5e-4 and they add up with depth. int8: its scores near a decision may go anywhere, so its
#   limits only catch what is broken: what holds it is its agreement.
_BOXES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}
_SCORES_LIMIT: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-2, "int8": 1.0}
_AGREEMENT: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.99, "int8": 0.95}


class ObjectDetection:
    """`ortserve.export.tasks.BuildTask` for `pixels` uint8[batch,H,W,3] (and each row's thresholds) to boxes."""

    name = "object-detection"
    samples = "pictures"
    measure = "box agreement"
    remedy = "give trained --weights and a --calibration DIR of pictures like those you will serve, with objects on them"
    int8: Literal["static", "dynamic"] = "static"

    def __init__(self, preprocessing: Preprocessing, tail: Tail) -> None:
        self._preprocessing = preprocessing
        self._tail = tail
        form = tail.form
        shape = (preprocessing.height, preprocessing.width, 3)
        inputs = [TensorSpec(name="pixels", dtype="uint8", shape=("batch", *shape))]
        best = form.labels_per_box == "best"
        outputs = [TensorSpec(name="boxes", dtype="float32", shape=("batch", form.boxes, 4))]
        outputs.append(TensorSpec(name="scores", dtype="float32", shape=("batch", *(() if best else (form.classes,)), form.boxes)))
        outputs += [TensorSpec(name="classes", dtype="int64", shape=("batch", form.boxes))] if best else []
        if tail.suppress:
            inputs += [
                TensorSpec(name="score_threshold", dtype="float32", shape=("batch",)),
                TensorSpec(name="iou_threshold", dtype="float32", shape=("batch",)),
                TensorSpec(name="class_mask", dtype="bool", shape=("batch", form.classes)),
            ]
            outputs = [
                TensorSpec(name="detections", dtype="float32", shape=("batch", tail.max_detections, 6)),
                TensorSpec(name="count", dtype="int64", shape=("batch",)),
                *outputs,
            ]
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    def probes(self, max_batch: int) -> list[Probe]:
        """Noise at every batch size, all black, all white; the noise's rows under thresholds of their own."""
        noise, *flat = picture_probes(self._preprocessing, max_batch)
        turns = np.arange(max_batch)
        mixed = self._with_thresholds(noise.tensors["pixels"], np.take(_SCORES, turns % 4), np.take(_IOUS, turns % 4))
        return [replace(noise, tensors=mixed), *(replace(probe, tensors=self._shown(probe.tensors["pixels"])) for probe in flat)]

    def read_samples(self, folder: Path, advance: Advance) -> Samples:
        """The folder's pictures, some to calibrate on and others to measure on. Raises CalibrationError."""
        samples = read_folder(folder, self._preprocessing, advance, enough=MIN_PICTURES)
        return Samples(self._shown(samples.calibration["pixels"]), self._shown(samples.measurement["pixels"]), samples.note)

    def unmeasurable(self, answers: Tensors) -> str | None:
        """Too few boxes that a caller would be shown."""
        boxes = sum(len(found) for found in self._answered(answers))
        pictures = len(answers["boxes"])
        return None if boxes >= MIN_BOXES else f"{boxes} boxes over {SHOWN} on {pictures} pictures; needs {MIN_BOXES}"

    def compare(self, case: Case, have: Tensors, precision: Precision, options: Options) -> dict[str, Difference]:
        """Candidates against the reference's; suppressed boxes against numpy's suppression of the very same candidates.

        A model that answers each object once sorts by score: its scores are compared sorted, its boxes where a caller would be shown them.
        In two steps because suppression is a chain of decisions: where two scores are equal but for rounding, either may win, and all
        that follows differs without a fault. fp32 compares every candidate, the others those that a caller would be shown.
        """
        rows = len(have["boxes"])
        want = {name: tensor[:rows] for name, tensor in case.answers.items()}
        largest = tolerance(options, _BOXES[precision]) if precision == "fp32" else _BOXES[precision]
        score_limit = tolerance(options, _SCORES_LIMIT[precision]) if precision == "fp32" else _SCORES_LIMIT[precision]
        side = max(self._preprocessing.height, self._preprocessing.width)
        if self._tail.form.layout == "end-to-end":
            return self._compare_sorted(have, want, score_limit)
        have_boxes, want_boxes = have["boxes"], want["boxes"]
        if precision != "fp32":
            best = want["scores"] if want["scores"].ndim == 2 else want["scores"].max(axis=1)
            shown = (best > SHOWN)[..., np.newaxis]
            have_boxes, want_boxes = np.where(shown, have_boxes, 0.0), np.where(shown, want_boxes, 0.0)
        # Coordinates beyond the picture are a box's own business, but what is far away is also far from exact.
        scale = max(float(side), float(np.abs(want_boxes).max(initial=0.0)))
        found = {
            "boxes": difference(_flat(have_boxes), _flat(want_boxes), scale=scale, limit=largest),
            "scores": difference(_flat(have["scores"]), _flat(want["scores"]), scale=1.0, limit=score_limit),
        }
        if self._tail.suppress:
            again = suppressed(have, {name: tensor[:rows] for name, tensor in case.tensors.items()}, self._tail)
            same = bool((again["count"] == have["count"]).all())
            wrong = difference(_flat(have["detections"]), _flat(again["detections"]), scale=float(side), limit=1e-6)
            found["detections"] = wrong if same else wrong.model_copy(update={"max_abs": float("inf"), "passed": False})
        return found

    def _compare_sorted(self, have: Tensors, want: Tensors, score_limit: float) -> dict[str, Difference]:
        rows = len(want["scores"])
        pairs = list(zip(self._answered(have), self._answered(want), strict=True))
        lost = [
            1.0 - 2 * _matches(ours, theirs) / max(1, len(ours) + len(theirs)) if len(ours) + len(theirs) else 0.0 for ours, theirs in pairs
        ]
        shares = np.ones((rows, 1)) - np.array(lost).reshape(rows, 1)
        return {
            "scores": difference(np.sort(have["scores"]), np.sort(want["scores"]), scale=1.0, limit=score_limit),
            "boxes": difference(shares, np.ones((rows, 1)), scale=1.0, limit=0.5),  # one of two may lie on the threshold itself
        }

    def agreement(self, have: Tensors, want: Tensors, precision: Precision, options: Options, note: str) -> Agreement:
        """Of the boxes that a caller would be shown by either, the share that the other shows too: same class, IoU over `SAME_IOU`."""
        limit = self.agreement_limit(precision, options)
        matched = total = 0
        for ours, theirs in zip(self._answered(have), self._answered(want), strict=True):
            both = _matches(ours, theirs)
            matched += 2 * both
            total += len(ours) + len(theirs)
        value = matched / total if total else 0.0
        pictures = len(want["boxes"])
        return Agreement(
            measure=self.measure,
            value=value,
            limit=limit,
            samples=pictures,
            passed=value >= limit,
            note=f"{total - matched // 2} boxes on {note}",
        )

    def agreement_limit(self, precision: Precision, options: Options) -> float:
        """The least box agreement that passes."""
        return least_agreement(precision, options, _AGREEMENT[precision])

    def _answered(self, answers: Tensors) -> list[NDArray[np.float32]]:
        """For each picture the boxes [n,6] that a caller would be shown by default, whether the graph suppresses or the service."""
        if not self._tail.suppress:
            answers = suppressed(answers, self._thresholds(len(answers["boxes"])), self._tail)
        return [row[:count] for row, count in zip(answers["detections"], np.maximum(answers["count"], 0), strict=True)]

    def _shown(self, pixels: NDArray[np.uint8]) -> Tensors:
        return {"pixels": pixels, **(self._thresholds(len(pixels)) if self._tail.suppress else {})}

    def _with_thresholds(self, pixels: NDArray[np.uint8], scores: NDArray[np.float64], ious: NDArray[np.float64]) -> Tensors:
        if not self._tail.suppress:
            return {"pixels": pixels}
        mask = np.ones((len(pixels), self._tail.form.classes), np.bool_)
        mask[1::3, ::2] = False  # every third row asks for half of the classes
        return {
            "pixels": pixels,
            "score_threshold": scores.astype(np.float32),
            "iou_threshold": ious.astype(np.float32),
            "class_mask": mask,
        }

    def _thresholds(self, rows: int) -> Tensors:
        # A model that needs no suppression has none here either: of two boxes of one place it means both.
        iou = SHOWN_IOU if self._tail.form.layout != "end-to-end" else 1.0
        return {
            "score_threshold": np.full(rows, SHOWN, np.float32),
            "iou_threshold": np.full(rows, iou, np.float32),
            "class_mask": np.ones((rows, self._tail.form.classes), np.bool_),
        }


def _flat(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    return tensor.reshape(len(tensor), -1)


def _matches(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> int:
    """How many pairs of boxes [n,6] are the same: each box in one pair at most, the best overlap first."""
    if not len(ours) or not len(theirs):
        return 0
    low = np.maximum(ours[:, np.newaxis, :2], theirs[np.newaxis, :, :2])
    high = np.minimum(ours[:, np.newaxis, 2:4], theirs[np.newaxis, :, 2:4])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [(boxes[:, 2:4] - boxes[:, :2]).prod(axis=1) for boxes in (ours, theirs)]
    union = areas[0][:, np.newaxis] + areas[1][np.newaxis] - shared
    overlap = np.where((ours[:, np.newaxis, 5] == theirs[np.newaxis, :, 5]) & (union > 0), shared / np.where(union > 0, union, 1.0), 0.0)
    pairs = 0
    while overlap.max() > SAME_IOU:
        mine, other = np.unravel_index(overlap.argmax(), overlap.shape)
        overlap[mine, :] = overlap[:, other] = 0.0
        pairs += 1
    return pairs
