"""Requests of the protocol read from bytes: what was sent comes out, and what was sent wrongly is refused in words, at its own cost."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ortserve.errors import RequestError
from ortserve.manifest import TensorSpec
from ortserve.v2 import request_reader
from ortserve.v2.datatypes import BINARY_ONLY, DTYPES, datatype
from ortserve.v2.messages import InferRequest
from tests.v2 import binary_body, described, json_body

SHAPES = hnp.array_shapes(max_dims=4, max_side=4)


def arrays(*, json_too: bool) -> st.SearchStrategy[NDArray[Any]]:
    """Of every datatype; such as JSON can carry, or with NaN and infinity as well."""
    names = [name for name in DTYPES if not (json_too and name in BINARY_ONLY)]

    def of(name: str) -> st.SearchStrategy[NDArray[Any]]:
        dtype = DTYPES[name]
        elements: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" and json_too else {}
        return hnp.arrays(dtype, SHAPES, elements=elements)

    return st.sampled_from(names).flatmap(of)


def same(request: InferRequest, sent: dict[str, NDArray[Any]]) -> None:
    assert [tensor.name for tensor in request.inputs] == list(sent)
    for tensor in request.inputs:
        assert tensor.data.dtype == sent[tensor.name].dtype
        assert tensor.data.shape == sent[tensor.name].shape
        assert tensor.data.tobytes() == sent[tensor.name].tobytes()
        assert tensor.datatype == datatype(tensor.data.dtype.name)


@given(st.lists(arrays(json_too=True), min_size=1, max_size=3), st.booleans())
@settings(deadline=None)
def test_json_comes_out_as_it_went_in_bit_by_bit(sent: list[NDArray[Any]], nested: bool) -> None:
    inputs = {f"x{index}": array for index, array in enumerate(sent)}
    body = json_body(inputs, nested=nested)
    same(request_reader.read(body, len(body)), inputs)


@given(st.lists(arrays(json_too=False), min_size=1, max_size=3))
@settings(deadline=None)
def test_bytes_come_out_as_they_went_in(sent: list[NDArray[Any]]) -> None:
    inputs = {f"x{index}": array for index, array in enumerate(sent)}
    same(request_reader.read(*binary_body(inputs)), inputs)


def test_bytes_are_not_copied_where_they_lie_right() -> None:
    body, length = binary_body({"x": np.arange(1000, dtype=np.uint8).reshape(10, 100)})
    (tensor,) = request_reader.read(body, length).inputs
    assert np.shares_memory(tensor.data, np.frombuffer(body, np.uint8))


def test_json_and_bytes_in_one_request() -> None:
    flat = np.arange(6, dtype=np.int32).reshape(2, 3)
    one, two = np.ones((2, 2), np.float32), np.zeros((2, 1), np.uint8)
    head = json.dumps(
        {
            "inputs": [
                {**described("a", one), "parameters": {"binary_data_size": one.nbytes}},
                {**described("b", flat), "data": flat.reshape(-1).tolist()},
                {**described("c", two), "parameters": {"binary_data_size": two.nbytes}},
            ]
        }
    ).encode()
    same(request_reader.read(head + one.tobytes() + two.tobytes(), len(head)), {"a": one, "b": flat, "c": two})


def test_what_a_request_may_say_beside_its_tensors() -> None:
    body = json_body(
        {"x": np.zeros((1, 1), np.uint8)},
        id="the sender's",
        model_name="left aside",
        parameters={"binary_data_output": True, "timeout": 1500, "their_own": {"a": [1]}, "priority": 3},
        outputs=[{"name": "y"}, {"name": "z", "parameters": {"binary_data": False, "classification": 3}}],
    )
    request = request_reader.read(body, len(body))
    assert (request.id, request.within_s) == ("the sender's", 0.0015)
    assert request.outputs is not None
    assert [(one.name, one.binary, one.classes) for one in request.outputs] == [("y", True, None), ("z", False, 3)]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def of_input(**changed: Any) -> dict[str, Any]:
    """A request of one input `x`, INT64[2, 2], with some of it changed; None takes a field out."""
    tensor = {"name": "x", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4], **changed}
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


GOOD = of_input()["inputs"][0]
WRONG: dict[str, tuple[Any, str]] = {
    "no object": ([1], "JSON object"),
    "no inputs": ({}, "got none"),
    "empty inputs": ({"inputs": []}, "got none"),
    "inputs no list": ({"inputs": {"x": 1}}, "list of at most 64"),
    "input no object": ({"inputs": [1]}, "list of at most 64"),
    "too many inputs": ({"inputs": [GOOD] * 65}, "at most 64"),
    "twice": ({"inputs": [GOOD, GOOD]}, "'x' twice"),
    "no name": (of_input(name=None), "name: expected a text"),
    "name no text": (of_input(name=3), "name: expected a text"),
    "no shape": (of_input(shape=None), "shape: expected a list"),
    "empty shape": (of_input(shape=[]), "shape: expected a list"),
    "zero": (of_input(shape=[0, 2], data=[]), "each 1 or more"),
    "negative": (of_input(shape=[-1, -4]), "each 1 or more"),
    "fraction": (of_input(shape=[2.0, 2]), "whole numbers"),
    "true": (of_input(shape=[True, 4]), "whole numbers"),
    "many dimensions": (of_input(shape=[1] * 9), "1 to 8"),
    "product over 2**63": (of_input(shape=[2**62, 2**62]), "got 4"),
    "dimension over 2**64": (of_input(shape=[2**70]), "whole numbers"),
    "lying shape": (of_input(shape=[2, 3]), "expected 6 elements by the shape [2, 3], got 4"),
    "nested otherwise": (of_input(data=[[1, 2, 3], [4]]), "lists of 2 at depth 1"),
    "half nested": (of_input(data=[[1, 2], 3]), "lists of 2 at depth 1"),
    "nested too deep": (of_input(data=[[[1], [2]], [[3], [4]]]), "whole numbers for INT64, got a list"),
    "no datatype": (of_input(datatype=None), "datatype: expected one of BOOL"),
    "unknown datatype": (of_input(datatype="INT7"), "got 'INT7'"),
    "bf16": (of_input(datatype="BF16"), "expected one of"),
    "bytes": (of_input(datatype="BYTES", data=["a"] * 4), "expected one of"),
    "fp16 in json": (of_input(datatype="FP16"), "expected FP16 as binary data"),
    "no data": (of_input(data=None), "expected its data"),
    "data no list": (of_input(data="1234"), "expected a list, got a text"),
    "data null": (of_input(data=[1, None, 3, 4]), "got null"),
    "fraction in integers": (of_input(data=[1, 2.5, 3, 4]), "got a number with a fraction"),
    "text in integers": (of_input(data=[1, "2", 3, 4]), "got a text"),
    "true in integers": (of_input(data=[1, True, 3, 4]), "got true or false"),
    "integers in bool": (of_input(datatype="BOOL"), "true or false for BOOL"),
    "true in floats": (of_input(datatype="FP32", data=[1, True, 3, 4]), "got true or false"),
    "out of range": (of_input(datatype="UINT8", data=[1, 256, 3, 4]), "out of its range"),
    "negative unsigned": (of_input(datatype="UINT64", data=[1, -1, 3, 4]), "out of its range"),
    "over int64": (of_input(data=[1, 2**63, 3, 4]), "out of its range"),
    "over float32": (of_input(datatype="FP32", data=[1, 1e39, 3, 4]), "out of its range"),
    "size and data": (of_input(parameters={"binary_data_size": 0}), "got both"),
    "size no number": (of_input(data=None, parameters={"binary_data_size": "32"}), "whole number of bytes"),
    "size true": (of_input(data=None, parameters={"binary_data_size": True}), "whole number of bytes"),
    "size negative": (of_input(data=None, parameters={"binary_data_size": -32}), "whole number of bytes"),
    "missing tail": (of_input(data=None, parameters={"binary_data_size": 32}), "expected 32 bytes behind the JSON"),
    "missing exabytes": (of_input(shape=[2**31, 2**31], data=None, parameters={"binary_data_size": 2**62}), "bytes behind the JSON"),
    "shared memory": (of_input(data=None, parameters={"shared_memory_region": "r"}), "expected no shared_memory_region"),
    "parameters no object": (of_input(parameters=[]), "parameters as an object"),
    "sequence": ({**of_input(), "parameters": {"sequence_id": 1}}, "expected no sequence_id"),
    "id no text": ({**of_input(), "id": 3}, "id: expected a text"),
    "flag no flag": ({**of_input(), "parameters": {"binary_data_output": 1}}, "true or false"),
    "timeout": ({**of_input(), "parameters": {"timeout": -1}}, "microseconds"),
    "outputs no list": ({**of_input(), "outputs": "y"}, "outputs: expected a list"),
    "output twice": ({**of_input(), "outputs": [{"name": "y"}, {"name": "y"}]}, "'y' twice"),
    "classes": ({**of_input(), "outputs": [{"name": "y", "parameters": {"classification": 0}}]}, "1 or more"),
    "classes no number": ({**of_input(), "outputs": [{"name": "y", "parameters": {"classification": 1.5}}]}, "1 or more"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    said, message = WRONG[name]
    body = json.dumps(said).encode()
    with pytest.raises(RequestError) as refused:
        request_reader.read(body, len(body))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "data",
    ["NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "[" * 100_000, "[" * 2000 + "]" * 2000, "", "\0", "{", '"' + "a" * 100],
)
def test_what_is_no_json_is_refused(data: str) -> None:
    body = f'{{"inputs":[{{"name":"x","shape":[1],"datatype":"FP64","data":[{data}'.encode()
    for whole in (body + b"]}]}", body):
        with pytest.raises(RequestError):
            request_reader.read(whole, len(whole))


def test_an_excess_tail_is_refused() -> None:
    body, length = binary_body({"x": np.zeros(4, np.float32)})
    with pytest.raises(RequestError, match="expected 16 bytes behind the JSON by the binary_data_size of its inputs, got 17"):
        request_reader.read(body + b"\0", length)


@pytest.mark.parametrize(("datatype", "data"), [("BOOL", b"\2"), ("FP32", b"12345678")])
def test_bytes_that_are_no_tensor_of_the_shape(datatype: str, data: bytes) -> None:
    said = of_input(shape=[1], datatype=datatype, data=None, parameters={"binary_data_size": len(data)})
    head = json.dumps(said).encode()
    with pytest.raises(RequestError, match=r"bytes of 0 or 1|expected 4 bytes by its shape"):
        request_reader.read(head + data, len(head))


VALID = [binary_body({"x": np.arange(12, dtype=np.float32).reshape(3, 4), "y": np.ones((3, 1), np.int64)}, id="a", outputs=[{"name": "z"}])]
VALID += [
    (body, len(body))
    for body in (json_body({"x": np.ones((2, 3), np.float64)}, parameters={"timeout": 5}), json.dumps(of_input()).encode())
]


@given(st.sampled_from(VALID), st.data())
@settings(deadline=None, max_examples=400)
def test_a_changed_request_is_read_or_refused_and_never_more(valid: tuple[bytes, int], data: st.DataObject) -> None:
    whole, length = valid
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 4))] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"9" * 19, b"-1", b"1e30", b"["])
        )
        if not changed:
            return
    body = bytes(changed)
    tracemalloc.start()
    try:
        request_reader.read(body, data.draw(st.integers(0, len(body)) | st.just(min(length, len(body)))))
    except RequestError:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 1 << 20  # of a body of some 400 bytes, whatever sizes it claims


@given(st.binary(max_size=300), st.integers(0, 300))
@settings(deadline=None)
def test_rubbish_is_refused(body: bytes, length: int) -> None:
    with pytest.raises(RequestError):
        request_reader.read(body, min(length, len(body)))


# --- a body without any JSON ------------------------------------------------------------------------------------------


PIXELS = TensorSpec(name="pixels", dtype="uint8", shape=("batch", 2, 2))
WORDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence"))


def test_a_raw_body_is_one_row() -> None:
    request = request_reader.read_raw(b"\1\2\3\4", [PIXELS])
    assert request.binary
    assert request.inputs[0].data.tolist() == [[[1, 2], [3, 4]]]
    assert request_reader.read_raw(np.arange(3).tobytes(), [WORDS]).inputs[0].data.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("body", "specs"),
    [(b"123", [PIXELS]), (b"12345678", [PIXELS]), (b"", [WORDS]), (b"123", [WORDS]), (b"1234", [PIXELS, WORDS])],
)
def test_a_raw_body_that_is_no_row(body: bytes, specs: list[TensorSpec]) -> None:
    with pytest.raises(RequestError, match="JSON before"):
        request_reader.read_raw(body, specs)
