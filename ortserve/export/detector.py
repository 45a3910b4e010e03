"""A detector whose raw outputs are understood, ready for the pipeline: whatever made them, the rest is the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from ortserve.errors import SourceError
from ortserve.export.detection_form import Form, tell, with_scale
from ortserve.export.detection_graph import Tail, attach
from ortserve.export.detection_reference import decoded, suppressed
from ortserve.export.labels import matching
from ortserve.export.loaded import Loaded, Pixels
from ortserve.export.options import Options
from ortserve.export.simplify import simplify
from ortserve.export.tasks.object_detection import ObjectDetection
from ortserve.manifest import Detection, Preprocessing, Source
from ortserve.session import Tensors

# Ultralytics' own.
MAX_DETECTIONS = 300


class Raw(Protocol):
    """The model as it was given, up to its raw outputs."""

    description: str

    def __call__(self, pixels: Pixels) -> list[NDArray[Any]]:
        """Each output for uint8[N,H,W,3]."""
        ...


class DetectorReference:
    """`Reference`: the model's own raw outputs, decoded and suppressed by numpy."""

    def __init__(self, raw: Raw, tail: Tail, order: Sequence[int]) -> None:
        self.description = f"{raw.description}, decoded by numpy"
        self._raw = raw
        self._tail = tail
        self._order = order

    def __call__(self, inputs: Tensors) -> Tensors:
        """As `Reference`."""
        outputs = self._raw(inputs["pixels"])
        found = decoded([outputs[index] for index in self._order], self._tail)
        if not self._tail.suppress:
            return found
        return {**suppressed(found, inputs, self._tail), **found}


def from_raw(
    raw: Raw,
    *,
    name: str,
    options: Options,
    preprocessing: Preprocessing,
    labels: tuple[str, ...] | None,
    source: Source,
    packages: tuple[str, ...],
    graph: Callable[[Form, tuple[int, ...], int | None], onnx.ModelProto],
    batch: int | None = None,
    batch_note: str = "",
    candidates_per_class: int | None = None,
    shown: str,
) -> Loaded:
    """The detector, its form told from a run on noise. `graph(form, order, opset)` gives its graph with outputs named by `raw_names`.

    `order` says which of the raw outputs come first: the scores. Raises SourceError where the outputs are no detector's.
    """
    noise = np.random.default_rng(0).integers(0, 256, (batch or 2, preprocessing.height, preprocessing.width, 3), dtype=np.uint8)
    outputs = raw(noise)
    size = (preprocessing.height, preprocessing.width)
    form, scores = tell([output.shape[1:] for output in outputs], size, None if labels is None else len(labels), options, shown)
    order = (scores, 1 - scores) if len(outputs) == 2 else (0,)
    form = with_scale(form, float(np.abs(_coordinates([outputs[index] for index in order], form)).max(initial=0.0)), options)
    if form.layout == "end-to-end" and labels is None:
        raise SourceError(f"{shown} answers boxes with the number of their class, not how many there are: give --labels, one line for each")
    if form.layout == "end-to-end" and options.nms is not None:
        raise SourceError(f"--nms {options.nms}: {shown} answers each object once, there is nothing to suppress: leave it out")
    suppress = form.layout != "end-to-end" and options.nms != "service"
    most = min(options.max_detections or MAX_DETECTIONS, form.boxes * (form.classes if form.labels_per_box == "all" else 1))
    tail = Tail(form, preprocessing.height, preprocessing.width, suppress, most, candidates_per_class if suppress else None)
    return Loaded(
        name=name,
        task=ObjectDetection(preprocessing, tail),
        reference=DetectorReference(raw, tail, order),
        graph=partial(graph, form, order),
        simplify=partial(simplify, rows=batch or 2),
        tail=partial(attach, tail=tail),
        source=source,
        packages=packages,
        facts={"labels": matching(labels, form.classes), "preprocessing": preprocessing, "detection": _facts(form, tail)},
        max_batch=batch,
        batch_note=batch_note,
        note=_note(form, tail),
    )


def _coordinates(outputs: list[NDArray[Any]], form: Form) -> NDArray[Any]:
    if form.layout == "scores-boxes":
        return outputs[1]
    return outputs[0][:, :4] if form.layout == "yolov8" else outputs[0][..., :4]


def _facts(form: Form, tail: Tail) -> Detection:
    return Detection(
        layout=form.layout,
        boxes=form.boxes,
        box_format=form.box_format,
        relative=form.relative,
        background=form.background,
        score_activation=form.score_activation,
        labels_per_box=form.labels_per_box,
        nms="graph" if tail.suppress else "none" if form.layout == "end-to-end" else "service",
        max_detections=tail.max_detections,
    )


def _note(form: Form, tail: Tail) -> str:
    """What was understood, for the build's first line: a wrong reading is seen there, not in the answers."""
    where = "suppressed in the graph" if tail.suppress else "not suppressed" if form.layout == "end-to-end" else "suppressed in the service"
    scale = "relative" if form.relative else "pixels"
    background = "" if form.background == "none" else f", background {form.background}"
    return f"{form.layout}: {form.boxes} boxes ({form.box_format}, {scale}) of {form.classes} classes{background}, {where}"
