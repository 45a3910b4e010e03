"""A detector's raw output, decoded and suppressed inside the graph: one form for every layout, whatever the model was.

Written in ONNX's own text form. Decoding gives candidates: `boxes` float32[batch,A,4] (x1, y1, x2, y2 in pixels of the input) and
`scores`, which with one label a box are float32[batch,A] beside `classes` int64[batch,A], and with every label float32[batch,C,A].
A Loop over the rows then suppresses: requests that share a batch bring thresholds and classes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper

from ortserve.export.detection_form import Form
from ortserve.export.graph import once_each_opset, opset_of

# Names of our nodes and tensors begin so: the converters leave these nodes in fp32, by name.
PREFIX = "detect."
# ReduceMax takes its axes as an input from here on.
_AXES_AS_INPUT = 18


@dataclass(frozen=True)
class Tail:
    """What is put behind the model. `suppress`: at most `max_detections` boxes a picture come out; else all candidates."""

    form: Form
    height: int
    width: int
    suppress: bool
    max_detections: int
    candidates_per_class: int | None = None  # only the best so many of a class are looked at: torchvision's SSD; None: all


def raw_names(form: Form) -> tuple[str, ...]:
    """The names that the model's own outputs must have for `attach`; where there are two, the scores come first."""
    return ("raw_scores", "raw_boxes") if form.layout == "scores-boxes" else ("raw",)


def attach(model: onnx.ModelProto, tail: Tail) -> onnx.ModelProto:
    """The model with decoding, and suppression where wanted, behind its raw outputs."""
    ours = _tail(tail, opset_of(model), model.ir_version, {item.domain: item.version for item in model.opset_import})
    outputs = [value.name for value in ours.graph.output]
    joined: onnx.ModelProto = onnx.compose.merge_models(
        model, ours, io_map=[(name, name) for name in raw_names(tail.form)], outputs=outputs
    )
    return once_each_opset(joined)


def _tail(tail: Tail, opset: int, ir_version: int, domains: Mapping[str, int]) -> onnx.ModelProto:
    """The graph from raw outputs to answers, as a model of its own."""
    form = tail.form
    inputs = [f"float[batch,{form.boxes},{form.columns}] raw_scores", f"float[batch,{form.boxes},4] raw_boxes"]
    if form.layout != "scores-boxes":
        shape = {
            "yolov8": f"{4 + form.classes},{form.boxes}",
            "yolov5": f"{form.boxes},{5 + form.classes}",
            "end-to-end": f"{form.boxes},6",
        }[form.layout]
        inputs = [f"float[batch,{shape}] raw"]
    best = form.labels_per_box == "best"
    outputs = [f"float[batch,{form.boxes},4] boxes"]
    outputs += [f"float[batch,{form.boxes}] scores", f"int64[batch,{form.boxes}] classes"] if best else []
    outputs += [] if best else [f"float[batch,{form.classes},{form.boxes}] scores"]
    nodes = _decoding(form, opset)
    if tail.suppress:
        inputs += ["float[batch] score_threshold", "float[batch] iou_threshold", f"bool[batch,{form.classes}] class_mask"]
        outputs = [f"float[batch,{tail.max_detections},6] detections", "int64[batch] count", *outputs]
        nodes += _suppression(tail)
    opsets = ", ".join(f'"{domain}" : {version}' for domain, version in domains.items())
    text = f"<ir_version: {ir_version}, opset_import: [{opsets}]> tail ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {nodes} }}"
    model: onnx.ModelProto = onnx.parser.parse_model(text)
    _name(model, {value.name for value in [*model.graph.input, *model.graph.output]})
    read = {name for node in _all_nodes(model.graph) for name in node.input}
    for name, array in _constants(tail).items():
        if PREFIX + name in read:
            model.graph.initializer.append(numpy_helper.from_array(array, PREFIX + name))
    return model


def _constants(tail: Tail) -> dict[str, NDArray[np.generic]]:
    """What the text reads by name."""
    integers = {"zero": 0, "one": 1, "two": 2, "four": 4, "five": 5, "classes_count": tail.form.classes}
    vectors = {
        "at_0": [0], "at_1": [1], "at_2": [2], "at_4": [4], "at_5": [5], "at_end": [np.iinfo(np.int64).max], "at_last": [-1],
        "axes_12": [1, 2], "most": [tail.max_detections], "leading_count": [min(tail.candidates_per_class or 1, tail.form.boxes)],
    }  # fmt: skip
    floats: dict[str, float | list[float] | list[list[float]]] = {
        "half": 0.5, "none": 0.0, "no_score": [0.0], "off_on": [0.0, 1.0], "no_box": [[0.0] * 4],
        "size": [float(tail.width), float(tail.height)] * 2, "no_rows": [[0.0] * 6] * tail.max_detections,
    }  # fmt: skip
    return {
        **{name: np.array(value, np.int64) for name, value in (integers | vectors).items()},
        **{name: np.array(value, np.float32) for name, value in floats.items()},
        "damaged": np.array(-1, np.int64),
        "no_class": np.array([0], np.int64),
    }


def _decoding(form: Form, opset: int) -> str:
    """From raw output to candidates, and `sum` float[batch]: no number where one of the row's scores is none."""
    split = {
        "yolov8": """
            rows = Transpose<perm=[0,2,1]>(raw)
            raw_boxes = Slice(rows, at_0, at_4, at_2)
            raw_scores = Slice(rows, at_4, at_end, at_2)""",
        "yolov5": """
            raw_boxes = Slice(raw, at_0, at_4, at_2)
            objectness = Slice(raw, at_4, at_5, at_2)
            class_scores = Slice(raw, at_5, at_end, at_2)
            raw_scores = Mul(class_scores, objectness)""",
        "end-to-end": """
            raw_boxes = Slice(raw, at_0, at_4, at_2)
            raw_scores = Slice(raw, at_4, at_5, at_2)
            raw_class = Gather<axis=2>(raw, five)
            classes = Cast<to=7>(raw_class)""",
        "scores-boxes": "",
    }[form.layout]
    return split + _scores(form, opset) + _boxes(form)


def _scores(form: Form, opset: int) -> str:
    activation = {"none": "Identity", "sigmoid": "Sigmoid", "softmax": "Softmax<axis=2>"}[form.score_activation]
    begin, end = {"none": ("at_0", "at_end"), "first": ("at_1", "at_end"), "last": ("at_0", "at_last")}[form.background]
    text = f"""
        sum = ReduceSum<keepdims=0>(raw_scores, axes_12)
        active = {activation}(raw_scores)
        per_label = Slice(active, {begin}, {end}, at_2)"""
    if form.layout == "end-to-end":
        return text + "\nscores = Squeeze(per_label, at_2)"
    if form.labels_per_box == "all":
        return text + "\nscores = Transpose<perm=[0,2,1]>(per_label)"
    best = "ReduceMax<keepdims=0>(per_label, at_2)" if opset >= _AXES_AS_INPUT else "ReduceMax<axes=[2], keepdims=0>(per_label)"
    return text + f"\nscores = {best}\nclasses = ArgMax<axis=2, keepdims=0>(per_label)"


def _boxes(form: Form) -> str:
    corners = {
        "xyxy": "corners = Identity(raw_boxes)",
        "cxcywh": """
            centre = Slice(raw_boxes, at_0, at_2, at_2)
            extent = Slice(raw_boxes, at_2, at_4, at_2)
            reach = Mul(extent, half)
            low = Sub(centre, reach)
            high = Add(centre, reach)
            corners = Concat<axis=2>(low, high)""",
        "xywh": """
            low = Slice(raw_boxes, at_0, at_2, at_2)
            extent = Slice(raw_boxes, at_2, at_4, at_2)
            high = Add(low, extent)
            corners = Concat<axis=2>(low, high)""",
    }[form.box_format]
    return corners + ("\nboxes = Mul(corners, size)" if form.relative else "\nboxes = Identity(corners)")


def _suppression(tail: Tail) -> str:
    """Each row by itself: its candidates above its threshold, suppressed class by class, the best first, filled up with zeros.

    `count` is how many are no filling, and -1 where the row's scores are no numbers (they would pass no threshold and look like an
    empty picture). One candidate without a score is added: NonMaxSuppression is never asked about no boxes at all, which ONNX Runtime's
    CUDA kernel does not provide for.
    """
    if tail.form.labels_per_box == "best":
        body = """
            row_classes = Gather(classes, row)
            above = Greater(row_scores, threshold)
            allowed = Gather(mask, row_classes)
            chosen = And(above, allowed)
            places = NonZero(chosen)
            index = Squeeze(places, at_0)
            own_scores = Gather(row_scores, index)
            own_classes = Gather(row_classes, index)
            own_boxes = Gather(row_boxes, index)
            some_scores = Concat<axis=0>(own_scores, no_score)
            some_classes = Concat<axis=0>(own_classes, no_class)
            some_boxes = Concat<axis=0>(own_boxes, no_box)
            hot = OneHot<axis=0>(some_classes, classes_count, off_on)
            by_class = Mul(hot, some_scores)"""
    else:
        limited = "chosen = Identity(allowed)"
        if tail.candidates_per_class is not None:
            limited = """
            leading, _ranks = TopK<axis=1>(row_scores, leading_count)
            border = Slice(leading, at_last, at_end, at_1)
            ahead = GreaterOrEqual(row_scores, border)
            chosen = And(allowed, ahead)"""
        body = f"""
            above = Greater(row_scores, threshold)
            column = Unsqueeze(mask, at_1)
            allowed = And(above, column)
            {limited}
            by_class = Where(chosen, row_scores, none)
            some_boxes = Identity(row_boxes)"""
    return f"""
        shape = Shape(scores)
        batch_size = Gather(shape, zero)
        detections, count = Loop(batch_size, "") <body = each_row (int64 row, bool on)
            => (bool still_on, float[{tail.max_detections},6] row_detections, int64 row_count) {{
            still_on = Identity(on)
            threshold = Gather(score_threshold, row)
            mask = Gather(class_mask, row)
            row_scores = Gather(scores, row)
            row_boxes = Gather(boxes, row)
            {body}
            one_picture = Unsqueeze(some_boxes, at_0)
            its_scores = Unsqueeze(by_class, at_0)
            overlap = Gather(iou_threshold, row)
            picked = NonMaxSuppression(one_picture, its_scores, most, overlap, none)
            kept_class = Gather<axis=1>(picked, one)
            kept_box = Gather<axis=1>(picked, two)
            class_and_box = Slice(picked, at_1, at_end, at_1)
            kept_scores = GatherND(by_class, class_and_box)
            kept_boxes = Gather(some_boxes, kept_box)
            class_number = Cast<to=1>(kept_class)
            score_column = Unsqueeze(kept_scores, at_1)
            class_column = Unsqueeze(class_number, at_1)
            found = Concat<axis=1>(kept_boxes, score_column, class_column)
            filled = Concat<axis=0>(found, no_rows)
            filled_scores = Gather<axis=1>(filled, four)
            best_scores, order = TopK(filled_scores, most)
            row_detections = Gather(filled, order)
            found_shape = Shape(kept_scores)
            found_count = Min(found_shape, most)
            plain_count = Squeeze(found_count, at_0)
            total = Gather(sum, row)
            difference = Sub(total, total)
            is_damaged = IsNaN(difference)
            row_count = Where(is_damaged, damaged, plain_count)
        }}>"""


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                nodes += _all_nodes(attribute.g)
    return nodes


def _name(model: onnx.ModelProto, public: set[str]) -> None:
    """Give every node and every tensor that is not in `public` a name that begins with `PREFIX`."""

    def renamed(name: str) -> str:
        return name if not name or name in public else PREFIX + name

    def walk(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [renamed(name) for name in node.input]
            node.output[:] = [renamed(name) for name in node.output]
            node.name = PREFIX + node.output[0].removeprefix(PREFIX)
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    for value in [*attribute.g.input, *attribute.g.output]:
                        value.name = renamed(value.name)
                    walk(attribute.g)

    walk(model.graph)
