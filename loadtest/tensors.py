"""What is sent to `/v2`: one row for a model, made by what its metadata say."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = "Inference-Header-Content-Length"
TOKENS = 16  # of a free dimension behind the rows: a text of one sentence
_STRUCT = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}

Request = tuple[bytes, dict[str, str]]  # body, headers


def as_json(inputs: Sequence[Mapping[str, Any]]) -> Request:
    """The row as JSON. Every element is 1, which is a number of every datatype, a pixel, a token and the mask of one."""
    tensors = [{**_head(one), "data": [one["datatype"] == "BOOL" or 1] * _elements(one)} for one in inputs]
    return json.dumps({"inputs": tensors}, separators=(",", ":")).encode(), {"Content-Type": "application/json"}


def as_bytes(inputs: Sequence[Mapping[str, Any]]) -> Request:
    """The same row as binary tensors; the answer's are to be binary as well."""
    datas = [struct.pack("<" + _STRUCT[one["datatype"]], 1) * _elements(one) for one in inputs]
    tensors = [{**_head(one), "parameters": {"binary_data_size": len(data)}} for one, data in zip(inputs, datas, strict=True)]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    return head + b"".join(datas), {HEADER: str(len(head)), "Content-Type": "application/octet-stream"}


def _head(tensor: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "shape": _shape(tensor), "datatype": tensor["datatype"]}


def _shape(tensor: Mapping[str, Any]) -> list[int]:
    return [1, *(TOKENS if size < 0 else size for size in tensor["shape"][1:])]


def _elements(tensor: Mapping[str, Any]) -> int:
    return math.prod(_shape(tensor))
