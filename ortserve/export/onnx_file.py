"""`model.onnx`: a graph somebody else exported, read with care, given our input and outputs, and kept as its own reference."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, load_external_data_for_model, uses_external_data

from ortserve.errors import SourceError
from ortserve.execution import Execution
from ortserve.execution import Session as SessionOptions
from ortserve.export.compose import Entry, Interface, Layout, compose
from ortserve.export.graph import once_each_opset
from ortserve.export.labels import matching, model_name, read_labels
from ortserve.export.loaded import Loaded, Pixels
from ortserve.export.options import Options
from ortserve.export.preprocessing import decide
from ortserve.export.tasks.image_classification import ImageClassification
from ortserve.manifest import Preprocessing, Source, sha256_of
from ortserve.session import Session, Tensors


def load(options: Options) -> Loaded:
    """The graph in that file. Raises SourceError where it is damaged, reaches outside its folder, or is no picture classifier."""
    path = Path(options.source).expanduser()
    if options.weights is not None:
        raise SourceError(f"--weights {options.weights}: {path.name} brings its weights itself: leave --weights out")
    model = read(path)
    face = interface(model, path.name)
    preprocessing = preprocessing_of(options, face, path.name)
    reference = OnnxReference(model, face, preprocessing, path.name)
    shape = reference({"pixels": np.zeros((2, preprocessing.height, preprocessing.width, 3), np.uint8)})["logits"].shape
    if len(shape) != 2 or shape[1] < 2:
        raise SourceError(f"expected {path.name} to answer one tensor [N,classes], got {list(shape)}: export the logits alone")
    source = Source(kind="onnx", reference=path.name, weights="its own", weights_sha256=sha256_of(path))
    return Loaded(
        name=model_name(path.stem),
        task=ImageClassification(preprocessing, shape[1]),
        reference=reference,
        graph=partial(compose, model, face, preprocessing),
        source=source,
        packages=(),
        facts={"labels": matching(read_labels(options.labels), shape[1]), "preprocessing": preprocessing},
        note=f"{shape[1]} classes",
    )


class OnnxRunner:
    """The given file's own answers with optimisations off, fed with float pictures that numpy normalised."""

    def __init__(self, model: onnx.ModelProto, entry: Entry, preprocessing: Preprocessing, name: str, outputs: Sequence[str]) -> None:
        self.description = f"{name}, optimisations off"
        self._entry = entry
        self._outputs = outputs
        self._bgr = preprocessing.channels == "bgr"
        self._mean = np.array(preprocessing.mean, np.float32)
        self._std = np.array(preprocessing.std, np.float32)
        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        given = {value.name for value in opened.graph.output}
        opened.graph.output.extend(
            onnx.helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs if output not in given
        )
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name  # one self-contained file: every byte of it has been checked by `read`
            onnx.save(opened, str(copy))
            execution = Execution(provider="CPUExecutionProvider", session=SessionOptions(graph_optimization_level="disabled"))
            self._session = Session.open(copy, execution)

    def __call__(self, pixels: Pixels) -> list[NDArray[Any]]:
        """Each output for these pictures, in the order they were named."""
        rows = self._entry.batch or len(pixels)
        parts = [self._run(pixels[start : start + rows], rows) for start in range(0, len(pixels), rows)]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, pixels: Pixels, rows: int) -> list[NDArray[Any]]:
        """One run; a graph with a fixed batch gets its last chunk filled up with copies."""
        filled = pixels if len(pixels) == rows else pixels[np.arange(rows) % len(pixels)]
        answer = self._session.run({self._entry.input: self._fed(filled)})
        return [answer[output][: len(pixels)] for output in self._outputs]

    def _fed(self, pixels: Pixels) -> NDArray[Any]:
        if self._entry.layout == "pixels":
            return pixels
        normalised = (pixels.astype(np.float32) / np.float32(255.0) - self._mean) / self._std
        if self._bgr:
            normalised = normalised[..., ::-1]
        return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2) if self._entry.layout == "nchw" else normalised)


class OnnxReference:
    """`Reference` for a classifier. Where the graph ends in a Softmax, the tensor before it is read too: those are the logits."""

    def __init__(self, model: onnx.ModelProto, face: Interface, preprocessing: Preprocessing, name: str) -> None:
        self._run = OnnxRunner(model, face, preprocessing, name, [face.output] if face.logits is None else [face.logits, face.output])
        self.description = self._run.description

    def __call__(self, inputs: Tensors) -> Tensors:
        """As `Reference`."""
        answers = self._run(inputs["pixels"])
        return {"logits": answers[0], "probabilities": softmax(answers[0]) if len(answers) == 1 else answers[1]}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the last axis, in double."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def read(path: Path) -> onnx.ModelProto:
    """The graph with all its weights inside.

    Raises SourceError where it is no ONNX file, or its external data is not a regular file in the model's own folder: ONNX lets a
    graph name any path, and the package would then carry bytes of other files.
    """
    if not path.is_file():
        raise SourceError(f"SOURCE {path}: no such file: expected an ONNX model")
    try:
        model = onnx.load(str(path), load_external_data=False)
        for tensor in _get_all_tensors(model):
            if uses_external_data(tensor):
                _check_location(ExternalDataInfo(tensor).location, path.parent, path.name)
        load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except SourceError:
        raise
    except Exception as error:  # protobuf's, the checker's and the system's errors share no base
        raise SourceError(f"{path.name} is not a valid ONNX file ({' '.join(str(error).split())[:200]}): export it again") from error
    # Files of the first years list their weights as inputs too.
    weights = {item.name for item in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)
    inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    return once_each_opset(inlined)


def interface(model: onnx.ModelProto, name: str) -> Interface:
    """What the graph takes and answers. Raises SourceError where that is not one picture batch in and one float tensor out."""
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
        raise SourceError(
            f"expected {name} to have one input and one output, got {', '.join(inputs)} -> {', '.join(outputs)}: export it alone"
        )
    [answer] = model.graph.output
    entry = entry_of(model, name)
    last = {output: node for node in model.graph.node for output in node.output}.get(answer.name)
    if last is not None and last.op_type == "Sigmoid":
        raise SourceError(f"{name} ends in a Sigmoid, so its classes do not exclude each other: only one class per picture is served")
    ends_in_softmax = last is not None and last.op_type == "Softmax"
    return Interface(
        input=entry.input,
        layout=entry.layout,
        batch=entry.batch,
        size=entry.size,
        output=answer.name,
        logits=last.input[0] if last is not None and ends_in_softmax else None,
    )


def entry_of(model: onnx.ModelProto, name: str) -> Entry:
    """What the graph takes. Raises SourceError where that is not one batch of pictures."""
    if len(model.graph.input) != 1:
        raise SourceError(f"expected {name} to have one input, got {', '.join(value.name for value in model.graph.input)}: export it alone")
    [given] = model.graph.input
    dims = [dim.dim_value or None for dim in given.type.tensor_type.shape.dim]
    dtype = given.type.tensor_type.elem_type
    layout = _layout(dims, dtype)
    if layout is None:
        shown = f"{TensorProto.DataType.Name(dtype).lower()}[{','.join('?' if dim is None else str(dim) for dim in dims)}]"
        raise SourceError(f"expected {name} to take float[N,3,H,W], float[N,H,W,3] or uint8[N,H,W,3], got {shown}: export it so, in fp32")
    sides = dims[2:4] if layout == "nchw" else dims[1:3]
    return Entry(input=given.name, layout=layout, batch=dims[0], size=(sides[0], sides[1]))


def _layout(dims: list[int | None], dtype: int) -> Layout | None:
    if len(dims) != 4:
        return None
    first, last = dims[1] == 3, dims[3] == 3
    if dtype == TensorProto.FLOAT and first != last:
        return "nchw" if first else "nhwc"
    return "pixels" if dtype == TensorProto.UINT8 and last and not first else None


def preprocessing_of(options: Options, face: Entry, name: str, decide: Callable[..., Preprocessing] = decide) -> Preprocessing:
    """How pictures become this graph's input. Raises SourceError where the command line contradicts it."""
    height, width = face.size
    if options.input_size is not None and any(have not in (None, want) for have, want in zip(face.size, options.input_size, strict=True)):
        raise SourceError(f"{name} fixes its input at {height}x{width}: leave --input-size out, or export it for another size")
    size = (height, width) if height is not None and width is not None else None
    if face.layout != "pixels":
        return decide(options, size=size)
    if options.mean is not None or options.std is not None:
        raise SourceError(f"{name} takes uint8 and normalises by itself: leave --mean and --std out")
    return decide(options, size=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # none of ours


def _check_location(location: str, folder: Path, name: str) -> None:
    remedy = "put the data file beside the model and export it with a relative name"
    pure = PurePosixPath(location)
    if not location or pure.is_absolute() or PureWindowsPath(location).is_absolute() or ".." in PureWindowsPath(location).parts:
        raise SourceError(f"{name} keeps weights at {location!r}, outside its own folder: {remedy}")
    step, mode = folder, folder.stat().st_mode
    for part in pure.parts:
        step = step / part
        try:
            mode = step.lstat().st_mode
        except OSError:
            raise SourceError(f"{name} keeps weights in {location!r}, which is not there: {remedy}") from None
        if stat.S_ISLNK(mode):
            raise SourceError(f"{name} keeps weights at {location!r}, reached through a symbolic link: {remedy}")
    if not stat.S_ISREG(mode):
        raise SourceError(f"{name} keeps weights at {location!r}, which is no regular file: {remedy}")
