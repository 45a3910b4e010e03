"""Object detection: one picture's bytes to `uint8[1, height, width, 3]`, boxes back to the picture's own pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortserve import images, nms, placement
from ortserve.errors import InferenceError, InvalidParameter, ModelError
from ortserve.tasks.decimals import shortest
from ortserve.tasks.endpoint import Endpoint, Files
from ortserve.tasks.parameters import fraction, named, refuse_unknown, whole_number
from ortserve.tasks.row import Row

if TYPE_CHECKING:
    from ortserve.manifest import Manifest
    from ortserve.profile import Profile
    from ortserve.session import Tensors

# Ultralytics' own of `predict`: a caller who moves here finds the same boxes without naming them.
DEFAULT_SCORE = 0.25
DEFAULT_IOU = 0.7
_NO_NUMBERS = "the model answered this picture with scores or boxes that are no numbers: send another picture"


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a caller may choose."""

    score_threshold: float  # a box must score more than this
    iou_threshold: float  # of two boxes of a class that overlap more than this, the better one is answered
    max_detections: int
    wanted: NDArray[np.bool_]  # [classes]


class ObjectDetection:
    """`ortserve.tasks.Task` for a model of pictures whose manifest has the sections `preprocessing` and `detection`."""

    payloads_per_job = 1

    def __init__(self, manifest: Manifest, folder: Path, profile: Profile) -> None:  # noqa: ARG002  all it needs is in the manifest
        """Raises ModelError where the manifest's tensors or sections are not those of an object detector."""
        how, detection = manifest.preprocessing, manifest.detection
        if how is None or detection is None or not manifest.labels or how.mode not in ("letterbox", "stretch"):
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected labels, a detection section and pictures that are letterboxed or "
                "stretched in its manifest; build it again"
            )
        classes = len(manifest.labels)
        wanted: dict[str, tuple[str, tuple[int, ...]]] = {"pixels": ("uint8", (how.height, how.width, 3))}
        if detection.nms == "graph":
            wanted |= {"score_threshold": ("float32", ()), "iou_threshold": ("float32", ()), "class_mask": ("bool", (classes,))}
            self.outputs: tuple[str, ...] = ("detections", "count")
        else:
            self.outputs = ("boxes", "scores", "classes") if detection.labels_per_box == "best" else ("boxes", "scores")
        if {spec.name: (spec.dtype, spec.shape[1:]) for spec in manifest.inputs} != wanted:
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected, for each row, the inputs "
                f"{', '.join(f'{name} {dtype}{list(shape)}' for name, (dtype, shape) in wanted.items())}, got "
                f"{', '.join(f'{spec.name} {spec.dtype}{list(spec.shape)}' for spec in manifest.inputs) or 'none'}; build it again"
            )
        self.endpoints: tuple[Endpoint, ...] = (
            Endpoint("/detect", Files("image", "image/", self.parameters), _one),
            Endpoint("/detect_batch", Files("images", "image/", self.parameters, many=True), _many, each_its_own=True),
        )
        self._how = how
        self._labels = manifest.labels
        self._detection = detection
        self._limits = profile.limits
        self._decoder = profile.images.decoder

    def parameters(self, fields: Mapping[str, str]) -> Parameters:
        """`score_threshold` and `iou_threshold` 0 to 1, `max_detections` 1 to the model's, `classes` by name or number."""
        refuse_unknown(fields, ("score_threshold", "iou_threshold", "max_detections", "classes"))
        if self._detection.nms == "none" and "iou_threshold" in fields:
            raise InvalidParameter("iou_threshold: this model answers each object once and compares no boxes: leave it out")
        most = self._detection.max_detections
        chosen = named(fields, "classes", self._labels)
        wanted = np.ones(len(self._labels), np.bool_) if chosen is None else np.isin(np.arange(len(self._labels)), list(chosen))
        return Parameters(
            score_threshold=fraction(fields, "score_threshold", default=DEFAULT_SCORE),
            iou_threshold=fraction(fields, "iou_threshold", default=DEFAULT_IOU),
            max_detections=whole_number(fields, "max_detections", lowest=1, highest=most, default=most),
            wanted=wanted,
        )

    def preprocess(self, payload: bytes | memoryview, parameters: Parameters) -> Row:
        """The picture in `payload` in its place, beside the request's thresholds where the graph reads them. Raises RequestError."""
        if self._decoder == "draft":  # the decoded picture may be smaller than the one that was sent
            placed = placement.place(images.upright_size(payload, self._limits), self._how)
            picture = images.decode(payload, self._limits, draft_size=placed.fitted)
            pixels = placement.lay(picture, placed, self._how)
        else:
            size, pixels = images.load_with_size(payload, self._how, self._limits, decoder="exact")
            placed = placement.place(size, self._how)
        tensors: Tensors = {"pixels": pixels[np.newaxis]}
        if self._detection.nms == "graph":
            tensors["score_threshold"] = np.array([parameters.score_threshold], np.float32)
            tensors["iou_threshold"] = np.array([parameters.iou_threshold], np.float32)
            tensors["class_mask"] = parameters.wanted[np.newaxis]
        return Row(tensors, placed)

    def postprocess(self, outputs: Tensors, row: Row, parameters: Parameters) -> dict[str, Any]:
        """`{"image": {"width", "height"}, "detections": [{"class_id", "label", "score", "box"}]}`, best first, boxes in its pixels.

        Raises InferenceError where a score or a box is no number: JSON has no word for it and a caller no use.
        """
        found = self._from_graph(outputs) if self._detection.nms == "graph" else self._in_service(outputs, parameters)
        found = found[: parameters.max_detections]
        if not np.isfinite(found).all():
            raise InferenceError(_NO_NUMBERS)
        placed: placement.Placement = row.context
        # Hundredths of a pixel: finer than any detector, and a third of the bytes.
        boxes = np.round(placed.back(found[:, :4]), 2).tolist()
        return {
            "image": {"width": placed.picture[0], "height": placed.picture[1]},
            "detections": [
                {
                    "class_id": int(class_id),
                    "label": self._labels[int(class_id)],
                    "score": score,
                    "box": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
                }
                for box, score, class_id in zip(boxes, shortest(found[:, 4]), found[:, 5], strict=True)
            ],
        }

    def _from_graph(self, outputs: Tensors) -> NDArray[np.float32]:
        count = int(outputs["count"][0])
        if count < 0:
            raise InferenceError(_NO_NUMBERS)
        return outputs["detections"][0, :count]

    def _in_service(self, outputs: Tensors, parameters: Parameters) -> NDArray[np.float32]:
        if not np.isfinite(outputs["scores"]).all():
            raise InferenceError(_NO_NUMBERS)
        boxes, scores, classes = nms.candidates(
            outputs["boxes"][0],
            outputs["scores"][0],
            outputs["classes"][0] if "classes" in outputs else None,
            score_threshold=np.float32(parameters.score_threshold),
            wanted=parameters.wanted,
        )
        if self._detection.nms == "none":
            kept = np.argsort(-scores, kind="stable")[: parameters.max_detections]
        else:
            kept = nms.suppress(boxes, scores, classes, iou_threshold=np.float32(parameters.iou_threshold), most=parameters.max_detections)
        return np.concatenate([boxes[kept], scores[kept, np.newaxis], classes[kept, np.newaxis].astype(np.float32)], axis=1)


def _one(model: str, version: str, values: Sequence[Any]) -> Any:
    """`{"model", "version", "image", "detections"}`."""
    return {"model": model, "version": version, **values[0]}


def _many(model: str, version: str, values: Sequence[Any]) -> Any:
    """`{"model", "version", "results"}`: for each picture `{"image", "detections"}` or `{"error"}`."""
    return {"model": model, "version": version, "results": list(values)}
