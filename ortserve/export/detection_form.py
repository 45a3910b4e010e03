"""What a detector's raw output means: its layout, its boxes and its scores, told apart from shapes and the class count or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ortserve.errors import SourceError
from ortserve.export.options import Options
from ortserve.manifest import Background, BoxFormat, LabelsPerBox, Layout, ScoreActivation

# Strides of the grids that YOLO heads predict on: P3 to P5, and P6 or P2 in the larger models.
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
# Anchors a cell: one since v6 and in YOLOX, three in v3 to v5 and v7.
_ANCHORS = (1, 3)
# Relative coordinates end at 1, or a little beyond it for objects cut by the border; pixels do not stay so small in thousands of boxes.
RELATIVE_UP_TO = 4.0


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the raw output is read. Shapes are those of one row: `boxes` predictions of `classes` classes."""

    layout: Layout
    boxes: int
    classes: int  # without the background
    box_format: BoxFormat = "cxcywh"
    relative: bool = False  # coordinates of 0 to 1 and not pixels of the input
    background: Background = "none"  # where the column of "no object" stands in the scores
    score_activation: ScoreActivation = "none"
    labels_per_box: LabelsPerBox = "best"

    @property
    def columns(self) -> int:
        """Score columns of the raw output, the background among them."""
        return self.classes + (self.background != "none")


def tell(shapes: Sequence[tuple[int, ...]], size: tuple[int, int], labels: int | None, options: Options, name: str) -> tuple[Form, int]:
    """The form of outputs of these shapes (one row each, without the batch), and which of them holds the scores.

    `size` is the height and width of the input, `labels` the number of classes where it is known. Where two readings are possible and
    no flag decides, SourceError names the flag that does.
    """
    if len(shapes) == 2:
        return _two(shapes, labels, options, name)
    if len(shapes) != 1 or len(shapes[0]) != 2:
        shown = ", ".join(f"[N,{','.join(map(str, shape))}]" for shape in shapes)
        raise SourceError(
            f"expected {name} to answer one tensor ([N,4+classes,boxes], [N,boxes,5+classes] or [N,boxes,6]) or scores [N,boxes,classes] "
            f"and boxes [N,boxes,4], got {shown}: export its detection head alone"
        )
    if options.background_class not in (None, "none"):
        raise SourceError(
            f"--background-class {options.background_class} is for scores and boxes in two outputs, {name} answers one: leave it out"
        )
    return _one(shapes[0], size, labels, options, name), 0


def with_scale(form: Form, largest: float, options: Options) -> Form:
    """The form with `relative` set: as the flag says, else by the largest coordinate that a run of the model gave."""
    relative = largest <= RELATIVE_UP_TO if options.box_scale is None else options.box_scale == "relative"
    return replace(form, relative=relative)


def _one(shape: tuple[int, ...], size: tuple[int, int], labels: int | None, options: Options, name: str) -> Form:
    rows, columns = shape
    layout = options.detection_layout or _layout(rows, columns, size, labels, name)
    if layout == "scores-boxes":
        raise SourceError(f"--detection-layout scores-boxes wants two outputs, {name} answers one [N,{rows},{columns}]: leave the flag out")
    boxes, classes = {"yolov8": (columns, rows - 4), "yolov5": (rows, columns - 5), "end-to-end": (rows, labels or 0)}[layout]
    wanted = {"yolov8": "[N,4+classes,boxes]", "yolov5": "[N,boxes,5+classes]", "end-to-end": "[N,boxes,6]"}[layout]
    if (layout == "end-to-end" and columns != 6) or (layout != "end-to-end" and (classes < 1 or (labels or classes) != classes)):
        known = "" if labels is None else f" for {labels} classes"
        raise SourceError(
            f"{name} answers [N,{rows},{columns}], which is not {wanted}{known}: give --labels with as many lines as it has "
            "classes, or another --detection-layout"
        )
    plain = layout == "end-to-end"
    if plain and options.labels_per_box == "all":
        raise SourceError(f"--labels-per-box all: {name} has one class for each box: leave it out")
    return Form(
        layout=layout,
        boxes=boxes,
        classes=classes,
        box_format=options.box_format or ("xyxy" if plain else "cxcywh"),
        score_activation=options.score_activation or "none",
        labels_per_box=options.labels_per_box or "best",
    )


def _layout(rows: int, columns: int, size: tuple[int, int], labels: int | None, name: str) -> Layout:
    """From the two dimensions: which of them counts boxes, known by the grids of the input's size, else by the class count or by size."""
    grids = dense_counts(size)
    if columns in grids and rows not in grids and rows > 4:
        return "yolov8"
    if rows in grids and columns not in grids:
        return _boxes_first(rows, columns, labels, name, dense=True)
    if columns != 6 and labels is not None and (rows == 4 + labels) != (columns == 5 + labels):
        return "yolov8" if rows == 4 + labels else "yolov5"
    if columns > rows:
        return "yolov8"
    return _boxes_first(rows, columns, labels, name, dense=False)


def _boxes_first(rows: int, columns: int, labels: int | None, name: str, *, dense: bool) -> Layout:
    """[N, boxes, columns]. Six columns are box, score and class, or box, objectness and the one class of a v5."""
    if columns != 6:
        return "yolov5"
    if dense:
        return "yolov5"
    if labels == 1 and rows > 1000:
        raise SourceError(
            f"{name} answers [N,{rows},6], which one class in the layout of v5 and end-to-end boxes both look like: "
            "give --detection-layout yolov5 or end-to-end"
        )
    return "end-to-end"


def dense_counts(size: tuple[int, int]) -> set[int]:
    """How many boxes a YOLO head predicts on an input of that height and width, for each kind of head."""
    height, width = size
    return {anchors * sum((height // stride) * (width // stride) for stride in strides) for strides in _STRIDES for anchors in _ANCHORS}


def _two(shapes: Sequence[tuple[int, ...]], labels: int | None, options: Options, name: str) -> tuple[Form, int]:
    shown = " and ".join(f"[N,{','.join(map(str, shape))}]" for shape in shapes)
    wrong = SourceError(f"expected {name} to answer scores [N,boxes,classes] and boxes [N,boxes,4], got {shown}: export these two alone")
    if options.detection_layout not in (None, "scores-boxes") or any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise wrong
    four = [index for index, shape in enumerate(shapes) if shape[1] == 4]
    if not four:
        raise wrong
    if len(four) == 2:
        raise SourceError(f"{name} answers {shown}: which of them are the scores? Export it with three columns of classes, or with five")
    scores = 1 - four[0]
    columns = shapes[scores][1]
    background = options.background_class or ("first" if labels is not None and columns == labels + 1 else "none")
    classes = columns - (background != "none")
    if classes < 1 or (labels is not None and classes != labels):
        raise SourceError(
            f"{name} scores {columns} columns, --labels names {labels}: name each class, and with --background-class first or last where "
            "one of the columns is the background"
        )
    form = Form(
        layout="scores-boxes",
        boxes=shapes[scores][0],
        classes=classes,
        box_format=options.box_format or "xyxy",
        background=background,
        score_activation=options.score_activation or "none",
        labels_per_box=options.labels_per_box or "all",
    )
    return form, scores
