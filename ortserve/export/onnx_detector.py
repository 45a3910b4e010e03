"""`model.onnx` of a detector: its own raw outputs are kept, decoding goes behind them, and its batch is freed where the graph allows it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ortserve.errors import ExportError, SourceError
from ortserve.export.compose import PREFIX, Entry, entered, free_shapes, rename
from ortserve.export.detection_form import Form
from ortserve.export.detection_graph import raw_names
from ortserve.export.detector import from_raw
from ortserve.export.labels import model_name, read_labels
from ortserve.export.loaded import Loaded
from ortserve.export.onnx_file import OnnxRunner, entry_of, preprocessing_of, read
from ortserve.export.options import Options
from ortserve.export.preprocessing import decide_detector
from ortserve.export.to_onnx import stripped
from ortserve.manifest import Preprocessing, Source, sha256_of


def load(options: Options) -> Loaded:
    """The detector in that file. Raises SourceError where it is damaged, reaches outside its folder, or is no detector."""
    path = Path(options.source).expanduser()
    if options.weights is not None:
        raise SourceError(f"--weights {options.weights}: {path.name} brings its weights itself: leave --weights out")
    model = read(path)
    entry = entry_of(model, path.name)
    outputs = [value.name for value in model.graph.output]
    if len(outputs) > 2:
        raise SourceError(f"expected {path.name} to answer one tensor, or scores and boxes, got {', '.join(outputs)}: export these alone")
    preprocessing = preprocessing_of(options, entry, path.name, decide_detector)
    batch, note = _batch(model, entry, outputs, preprocessing, options.opset, path.name)
    return from_raw(
        OnnxRunner(model, entry, preprocessing, path.name, outputs),
        name=model_name(path.stem),
        options=options,
        preprocessing=preprocessing,
        labels=read_labels(options.labels),
        source=Source(kind="onnx", reference=path.name, weights="its own", weights_sha256=sha256_of(path)),
        packages=(),
        graph=partial(_graph, model, entry, outputs, preprocessing, batch is None),
        batch=batch,
        batch_note=note,
        shown=path.name,
    )


def _batch(
    model: onnx.ModelProto, entry: Entry, outputs: list[str], preprocessing: Preprocessing, opset: int | None, name: str
) -> tuple[int | None, str]:
    """The only batch the graph takes and why, where it cannot be freed; else None."""
    try:
        free_shapes(entered(model, entry, preprocessing, opset), [PREFIX + output for output in outputs], preprocessing, entry)
    except ExportError as error:
        if entry.batch is None:
            raise
        if entry.batch != 1:
            raise SourceError(
                f"{name} takes {entry.batch} pictures and no other number: export it for one, or with a free batch"
            ) from error
        return 1, f"one picture at a time: {name} was exported for one and its graph depends on it ({_innermost(error)})"
    return None, ""


def _graph(
    model: onnx.ModelProto,
    entry: Entry,
    outputs: list[str],
    preprocessing: Preprocessing,
    free: bool,
    form: Form,
    order: tuple[int, ...],
    opset: int | None,
) -> onnx.ModelProto:
    """`pixels` to the raw outputs, under the names that decoding reads."""
    graph = entered(model, entry, preprocessing, opset, free=free)
    del graph.graph.output[:]
    shapes = [[form.boxes, form.columns], [form.boxes, 4]]
    if form.layout != "scores-boxes":
        shapes = [{"yolov8": [4 + form.classes, form.boxes], "yolov5": [form.boxes, 5 + form.classes]}.get(form.layout, [form.boxes, 6])]
    for index, name, shape in zip(order, raw_names(form), shapes, strict=True):
        rename(graph, PREFIX + outputs[index], name)
        graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))
    return stripped(graph)


def _innermost(error: ExportError) -> str:
    """The part of the message that says what did not fit."""
    return str(error).partition("): ")[2].rpartition(": export it again")[0][:160] or str(error)[:160]
