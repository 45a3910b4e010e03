"""The protocol's names of element types, numpy's, and which of them JSON can carry."""

from __future__ import annotations

from typing import Any

import numpy as np

_NUMPY = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
BYTES = "BYTES"  # texts; here only the classes of an answer, for no model takes or gives any
BF16 = "BF16"  # known by name alone: numpy has no such type, and no session here takes one

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(dtype) for name, dtype in _NUMPY.items()}
# JSON's numbers are decimals of any length; what a sender means by one in 16 bits is not defined. Triton says the same.
BINARY_ONLY = frozenset({"FP16", BF16})

_NAMES = {dtype: name for name, dtype in _NUMPY.items()}


def datatype(dtype: str) -> str:
    """The protocol's name of a manifest's dtype."""
    return _NAMES[dtype]
