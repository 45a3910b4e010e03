"""The body of an inference request over HTTP to a request: JSON, and behind it the tensors that it says come as bytes.

Every length is the sender's claim and is compared with the bytes that came before anything is made of it; arrays are views of the body.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ortserve.errors import RequestError, ShapeMismatch
from ortserve.manifest import TensorSpec
from ortserve.v2 import json_tensor
from ortserve.v2.datatypes import BF16, BYTES, DTYPES, datatype
from ortserve.v2.messages import InferRequest, InputTensor, RequestedOutput

MAX_TENSORS = 64  # in one request, as between the service's own processes; models have a handful
MAX_DIMENSIONS = 8
# Parameters that would change what the answer means, and that nothing here can follow. Others that are not known are left aside, as
# Triton does: clients send ones of their own, and the protocol leaves them to the server.
_NOT_OFFERED = {
    "sequence_id": "models here keep nothing from request to request",
    "shared_memory_region": "tensors come in the request",
}


def read(data: bytes, json_bytes: int) -> InferRequest:
    """The request in `data`, whose first `json_bytes` are JSON. Raises RequestError and ShapeMismatch, its cause in the sender's words."""
    view = memoryview(data)
    said = _document(view[:json_bytes])
    parameters = _parameters(said, "the request")
    listed = _objects(said, "inputs")
    if not listed:
        raise RequestError("inputs: expected the model's inputs, got none")
    inputs: list[InputTensor] = []
    at = json_bytes
    for index, item in enumerate(listed):
        where = f"inputs[{index}]"
        tensor, used = _input(where, item, view[at:])
        at += used
        if any(tensor.name == other.name for other in inputs):
            raise RequestError(f"{where}: expected each input once, got {tensor.name[:64]!r} twice")
        inputs.append(tensor)
    if at != len(data):
        raise RequestError(
            f"expected {at - json_bytes} bytes behind the JSON by the binary_data_size of its inputs, got {len(data) - json_bytes}"
        )
    binary = _flag(parameters, "binary_data_output", "parameters", default=False)
    identity = said.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RequestError("id: expected a text")
    return InferRequest(inputs, _outputs(said, binary), binary, identity, _timeout_s(parameters))


def read_raw(data: bytes, specs: Sequence[TensorSpec]) -> InferRequest:
    """The one row that `data` is, without any JSON: what follows from a model of one input with at most one other free dimension."""
    if len(specs) != 1:
        raise RequestError(f"expected JSON before the tensors, for the model has {len(specs)} inputs: say its length in the header")
    spec = specs[0]
    dtype = np.dtype(spec.dtype)
    fixed = math.prod(dim for dim in spec.shape[1:] if isinstance(dim, int)) * dtype.itemsize
    free = sum(isinstance(dim, str) for dim in spec.shape[1:])
    if free > 1 or not data or len(data) % fixed or (not free and len(data) != fixed):
        raise ShapeMismatch(
            f"expected one row of {spec.name!r}, a multiple of {fixed} bytes, got {len(data)}: send JSON before it that says its shape"
        )
    shape = [1, *(dim if isinstance(dim, int) else len(data) // fixed for dim in spec.shape[1:])]
    name = datatype(spec.dtype)
    return InferRequest([InputTensor(spec.name, name, _array("the body", name, shape, memoryview(data)))], None, binary=True)


def _document(view: memoryview) -> dict[str, Any]:
    try:
        said = orjson.loads(view)
    except orjson.JSONDecodeError:  # also of NaN, of numbers beyond a double's range, and of more than 1024 levels
        raise RequestError(
            "expected the request as a JSON object, got what is no valid JSON, or too deep: let a JSON library write it; where tensors "
            "follow as bytes, the header Inference-Header-Content-Length tells how long the JSON is"
        ) from None
    if not isinstance(said, dict):
        raise RequestError("expected the request as a JSON object, got another kind of JSON")
    return said


def _input(where: str, item: Mapping[str, Any], rest: memoryview) -> tuple[InputTensor, int]:
    """The tensor and how many bytes of `rest` it took."""
    name = _name(where, item)
    shape = _shape(where, item)
    kind = item.get("datatype")
    if kind in (BYTES, BF16) or not isinstance(kind, str) or kind not in DTYPES:
        shown = f"{kind[:16]!r}" if isinstance(kind, str) else "no text"
        raise ShapeMismatch(f"{where}.datatype: expected one of {', '.join(DTYPES)}, got {shown}: the model's metadata say which it takes")
    parameters = _parameters(item, where)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise RequestError(f"{where}: expected its data, or parameters.binary_data_size where it follows the JSON")
        return InputTensor(name, kind, json_tensor.read(f"{where}.data", kind, shape, item["data"])), 0
    if type(size) is not int or size < 0:
        raise RequestError(f"{where}.parameters.binary_data_size: expected a whole number of bytes")
    if "data" in item:
        raise RequestError(f"{where}: expected data or parameters.binary_data_size, got both")
    if size > len(rest):
        raise RequestError(f"{where}: expected {size} bytes behind the JSON by its binary_data_size, got {len(rest)}")
    return InputTensor(name, kind, _array(where, kind, shape, rest[:size])), size


def _array(where: str, kind: str, shape: Sequence[int], view: memoryview) -> NDArray[Any]:
    """A view of the bytes as an array; a copy only where they do not lie as the processor wants them."""
    dtype = DTYPES[kind]
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(view):
        raise ShapeMismatch(f"{where}: expected {wanted} bytes by its shape and {kind}, got {len(view)}")
    if kind == "BOOL" and wanted and np.frombuffer(view, np.uint8).max() > 1:
        raise ShapeMismatch(f"{where}: expected bytes of 0 or 1 for BOOL, got another")
    array = np.frombuffer(view, dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def _outputs(said: Mapping[str, Any], binary: bool) -> list[RequestedOutput] | None:
    """What is wanted; None where nothing is named."""
    wanted: list[RequestedOutput] = []
    for index, item in enumerate(_objects(said, "outputs")):
        where = f"outputs[{index}]"
        name = _name(where, item)
        if any(name == other.name for other in wanted):
            raise RequestError(f"{where}: expected each output once, got {name[:64]!r} twice")
        parameters = _parameters(item, where)
        classes = parameters.get("classification")
        if classes is not None and (type(classes) is not int or classes < 1):
            raise RequestError(f"{where}.parameters.classification: expected a number of classes, 1 or more")
        wanted.append(RequestedOutput(name, _flag(parameters, "binary_data", where, default=binary), classes))
    return wanted or None


def _objects(said: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """The list of objects under that key; empty where it is not there."""
    listed = said.get(key, [])
    if not isinstance(listed, list) or len(listed) > MAX_TENSORS or not all(isinstance(item, dict) for item in listed):
        raise RequestError(f"{key}: expected a list of at most {MAX_TENSORS} objects")
    return listed


def _name(where: str, item: Mapping[str, Any]) -> str:
    name = item.get("name")
    if not isinstance(name, str):
        raise RequestError(f"{where}.name: expected a text")
    return name


def _shape(where: str, item: Mapping[str, Any]) -> list[int]:
    shape = item.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMENSIONS or not all(type(dim) is int and dim > 0 for dim in shape):
        raise ShapeMismatch(f"{where}.shape: expected a list of 1 to {MAX_DIMENSIONS} whole numbers, each 1 or more")
    return shape


def _parameters(item: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = item.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(f"{where}: expected its parameters as an object")
    for name, why in _NOT_OFFERED.items():
        if name in parameters:
            raise RequestError(f"{where}: expected no {name}, for {why}: leave it out")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, where: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"{where}: expected {name} as true or false")
    return value


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    """Triton's parameter `timeout`: microseconds, 0 for none."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise RequestError("parameters.timeout: expected a whole number of microseconds")
    return value / 1e6 or None
