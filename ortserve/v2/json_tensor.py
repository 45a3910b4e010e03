"""The `data` of a tensor in JSON to an array: flat, or nested as its shape is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.errors import ShapeMismatch
from ortserve.v2.datatypes import BINARY_ONLY, DTYPES

_SHOWN = {int: "a whole number", float: "a number with a fraction", bool: "true or false", str: "a text", dict: "an object", list: "a list"}


def read(where: str, datatype: str, shape: Sequence[int], data: Any) -> NDArray[Any]:
    """`data` as an array of that datatype and shape. Raises ShapeMismatch where it is not of them: nothing is rounded, cut or filled."""
    if datatype in BINARY_ONLY:
        raise ShapeMismatch(
            f"{where}: expected {datatype} as binary data, got JSON, which has no such number: send it with binary_data_size"
        )
    flat = _flat(where, shape, data)
    dtype = DTYPES[datatype]
    _check_types(where, datatype, dtype, set(map(type, flat)))
    try:
        with np.errstate(over="ignore"):  # looked for below
            # Pictures: `bytes` takes a quarter of the time, and refuses what is out of range with a ValueError.
            array = np.frombuffer(bytes(flat), np.uint8) if datatype == "UINT8" else np.array(flat, dtype)
    except (OverflowError, ValueError):
        raise ShapeMismatch(
            f"{where}: expected numbers that {datatype} can hold, got one out of its range: send another datatype"
        ) from None
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ShapeMismatch(f"{where}: expected numbers that {datatype} can hold, got one out of its range: send another datatype")
    return array.reshape(shape)


def _flat(where: str, shape: Sequence[int], data: Any) -> list[Any]:
    """The elements in row-major order, as many as the shape has. Nothing is made by the size that the shape claims."""
    if not isinstance(data, list):
        raise ShapeMismatch(f"{where}: expected a list, got {_SHOWN.get(type(data), 'nothing')}")
    count = math.prod(shape)
    flat: list[Any] = data
    if flat and isinstance(flat[0], list):
        for depth, dim in enumerate(shape[1:], start=1):
            if any(type(item) is not list or len(item) != dim for item in flat):
                raise ShapeMismatch(
                    f"{where}: expected lists of {dim} at depth {depth}, by the shape {list(shape)}: send it flat or so nested"
                )
            flat = list(chain.from_iterable(flat))
    if len(flat) != count:
        raise ShapeMismatch(f"{where}: expected {count} elements by the shape {list(shape)}, got {len(flat)}")
    return flat


def _check_types(where: str, datatype: str, dtype: np.dtype[Any], found: set[type]) -> None:
    wanted: set[type] = {bool} if dtype.kind == "b" else {int} if dtype.kind in "iu" else {int, float}
    if wrong := found - wanted:
        kind = "true or false" if dtype.kind == "b" else "whole numbers" if dtype.kind in "iu" else "numbers"
        got = ", ".join(sorted(_SHOWN.get(one, "null") for one in wrong))
        raise ShapeMismatch(f"{where}: expected {kind} for {datatype}, got {got}")
