"""A request's tensors through the model: checked against its manifest, answered by its batcher, cut to what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ortserve.errors import InferenceError, RequestError, ShapeMismatch
from ortserve.manifest import TensorSpec
from ortserve.tasks.best_classes import top
from ortserve.v2.datatypes import BINARY_ONLY, BYTES, datatype
from ortserve.v2.messages import InferRequest, InferResponse, OutputTensor, RequestedOutput

if TYPE_CHECKING:
    from ortserve.model import ServedModel
    from ortserve.session import Tensors


def outputs_of(served: ServedModel) -> list[TensorSpec]:
    """The outputs a model answers: those its task asks the session for."""
    by_name = {spec.name: spec for spec in served.manifest.outputs}
    return [by_name[name] for name in served.task.outputs]


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that fits its model."""

    request: InferRequest
    inputs: Tensors
    rows: int
    outputs: Sequence[RequestedOutput]


def check(served: ServedModel, request: InferRequest) -> Checked:
    """The request, fit to be queued. Raises ShapeMismatch and RequestError where it does not fit the model."""
    inputs, rows = _inputs(served, request)
    return Checked(request, inputs, rows, _wanted(served, request))


async def infer(served: ServedModel, checked: Checked) -> InferResponse:
    """The model's answer. Raises as `ServedModel.infer`."""
    inferred = await served.infer(checked.inputs, checked.rows, within_s=checked.request.within_s)
    outputs = [_output(one, inferred.outputs[one.name], served.manifest.labels) for one in checked.outputs]
    return InferResponse(served.name, served.version, checked.request.id, outputs, inferred.queue_s, inferred.inference_s)


def _inputs(served: ServedModel, request: InferRequest) -> tuple[Tensors, int]:
    specs = {spec.name: spec for spec in served.manifest.inputs}
    tensors: Tensors = {}
    for tensor in request.inputs:
        spec = specs.get(tensor.name)
        if spec is None:
            raise RequestError(f"expected inputs named {', '.join(specs)}, got {tensor.name[:64]!r}")
        shape = tensor.data.shape
        fits = tensor.data.dtype == spec.dtype and len(shape) == len(spec.shape)
        # Of the rows the batcher has its own limit, also where the graph takes one at a time.
        fits = fits and all(isinstance(want, str) or want == have for want, have in zip(spec.shape[1:], shape[1:], strict=True))
        if not fits:
            raise ShapeMismatch(
                f"expected {tensor.name!r} as {_text(spec)}, got {tensor.datatype}{list(shape)}: the model's metadata say more"
            )
        tensors[tensor.name] = tensor.data
    if missing := [name for name in specs if name not in tensors]:
        raise RequestError(f"expected every input of the model, {missing[0]!r} is missing: send {', '.join(specs)}")
    rows = {tensor.shape[0] for tensor in tensors.values()}
    if len(rows) > 1:
        raise ShapeMismatch(f"expected the same rows in every input, got {', '.join(map(str, sorted(rows)))}")
    how = served.manifest.tokenization
    longest = max((tensor.shape[1] for tensor in tensors.values() if tensor.ndim > 1), default=0)
    if how is not None and longest > how.max_tokens:
        raise ShapeMismatch(f"expected at most {how.max_tokens} tokens in a row, got {longest}: send a part of the text")
    bounds: Mapping[str, int] = getattr(served.task, "bounds", {})  # tasks of texts have some: what is no token fails in the model
    for name, bound in bounds.items():
        if tensors[name].min() < 0 or tensors[name].max() >= bound:
            raise ShapeMismatch(f"expected {name!r} to hold 0 to {bound - 1}, got another number: send what the model's tokenizer gives")
    return tensors, rows.pop()


def _text(spec: TensorSpec) -> str:
    dims = ["N" if isinstance(dim, str) else str(dim) for dim in ("N", *spec.shape[1:])]
    return f"{datatype(spec.dtype)}[{','.join(dims)}]"


def _wanted(served: ServedModel, request: InferRequest) -> Sequence[RequestedOutput]:
    specs = {spec.name: spec for spec in outputs_of(served)}
    wanted = request.outputs or [RequestedOutput(name, request.binary) for name in specs]
    for one in wanted:
        if one.name not in specs:
            raise RequestError(f"expected outputs named {', '.join(specs)}, got {one.name[:64]!r}")
        if one.classes is None and not one.binary and (kind := datatype(specs[one.name].dtype)) in BINARY_ONLY:
            raise RequestError(f"expected {one.name!r} to be asked for as binary data, for it is {kind}, which JSON has no number for: "
                               "send binary_data: true")  # fmt: skip
    return wanted


def _output(wanted: RequestedOutput, tensor: NDArray[Any], labels: Sequence[str]) -> OutputTensor:
    if wanted.classes is not None:
        return _classes(wanted, wanted.classes, tensor, labels)
    return OutputTensor(wanted.name, datatype(tensor.dtype.name), tensor.shape, np.ascontiguousarray(tensor), wanted.binary)


def _classes(wanted: RequestedOutput, count: int, tensor: NDArray[Any], labels: Sequence[str]) -> OutputTensor:
    """Of each row the highest elements as `value:index:label`, best first; the label only where every element has one."""
    rows = tensor.reshape(len(tensor), -1)
    if not np.isfinite(rows).all():
        raise InferenceError("the model answered this input with scores that are no numbers: send another one")
    count = min(count, rows.shape[1])
    named = len(labels) == rows.shape[1]
    found = [
        # str() of a numpy scalar is the shortest decimal that means it
        f"{row[index]!s}:{index}{f':{labels[index]}' if named else ''}".encode()
        for row in rows
        for index in top(row, count).tolist()
    ]
    return OutputTensor(wanted.name, BYTES, (len(rows), count), found, wanted.binary)
