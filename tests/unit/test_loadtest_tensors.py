"""The rows that the load test sends to `/v2`, read as the service reads them."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.tensors import TOKENS, as_bytes, as_json
from ortserve.v2 import request_reader
from ortserve.v2.datatypes import BINARY_ONLY, DTYPES

SHAPES = ([-1], [-1, 8, 8, 3], [-1, -1])


@pytest.mark.parametrize("binary", [False, True])
def test_a_row_of_ones_in_the_shape_and_datatype_of_every_input(binary: bool) -> None:
    known = [name for name in DTYPES if binary or name not in BINARY_ONLY]
    inputs = [{"name": f"{name}{len(shape)}", "datatype": name, "shape": shape} for name in known for shape in SHAPES]
    body, headers = as_bytes(inputs) if binary else as_json(inputs)
    read = request_reader.read(body, int(headers.get("Inference-Header-Content-Length", len(body))))
    assert [tensor.name for tensor in read.inputs] == [one["name"] for one in inputs]
    assert read.binary is binary
    for tensor, one in zip(read.inputs, inputs, strict=True):
        assert tensor.data.dtype == DTYPES[str(one["datatype"])]
        assert tensor.data.shape == {1: (1,), 4: (1, 8, 8, 3), 2: (1, TOKENS)}[len(one["shape"])]
        assert np.all(tensor.data == 1)
