"""Requests of the Open Inference Protocol as bytes, and models that answer them without a session."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.v2.datatypes import datatype

HEADER = "Inference-Header-Content-Length"


def described(name: str, array: NDArray[Any]) -> dict[str, Any]:
    """What a request says of a tensor, less its data."""
    return {"name": name, "shape": list(array.shape), "datatype": datatype(array.dtype.name)}


def json_body(inputs: Mapping[str, NDArray[Any]], *, nested: bool = False, **more: Any) -> bytes:
    """A request whose tensors are JSON."""
    tensors = [
        {**described(name, array), "data": array.tolist() if nested else array.reshape(-1).tolist()} for name, array in inputs.items()
    ]
    return json.dumps({"inputs": tensors, **more}).encode()


def binary_body(inputs: Mapping[str, NDArray[Any]], **more: Any) -> tuple[bytes, int]:
    """A request whose tensors are bytes, and how long its JSON is."""
    tensors = [{**described(name, array), "parameters": {"binary_data_size": array.nbytes}} for name, array in inputs.items()]
    head = json.dumps({"inputs": tensors, **more}).encode()
    return head + b"".join(array.tobytes() for array in inputs.values()), len(head)


def binary_headers(json_bytes: int) -> dict[str, str]:
    """The headers of such a request."""
    return {HEADER: str(json_bytes), "Content-Type": "application/octet-stream"}


def parsed(body: bytes, header: str | None) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The JSON of an answer and its tensors, wherever they stand; read by the protocol's text, not by the code that wrote it."""
    length = len(body) if header is None else int(header)
    said = json.loads(body[:length])
    kinds: Mapping[str, str] = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BOOL": "?", "UINT8": "<u1", "INT64": "<i8", "INT32": "<i4"}
    tensors: dict[str, NDArray[Any]] = {}
    at = length
    for output in said["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = np.array(output["data"], kinds.get(output["datatype"], object))
        else:
            piece = body[at : at + size]
            flat = np.array(texts_of(piece), object) if output["datatype"] == "BYTES" else np.frombuffer(piece, kinds[output["datatype"]])
            at += size
        tensors[output["name"]] = flat.reshape(output["shape"])
    assert at == len(body)
    return said, tensors


def texts_of(data: bytes) -> Sequence[bytes]:
    """The strings of a BYTES tensor."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found
