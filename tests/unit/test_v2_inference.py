"""Requests of the protocol against a model without a session: what fits it is answered, what does not is refused before it is queued."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from ortserve.errors import InferenceError, RequestError, ShapeMismatch
from ortserve.manifest import TensorSpec, Tokenization
from ortserve.model import Inferred, ServedModel
from ortserve.session import Tensors
from ortserve.v2 import inference, response_writer
from ortserve.v2.datatypes import datatype
from ortserve.v2.messages import InferRequest, InputTensor, RequestedOutput
from tests.v2 import parsed


class Facts:
    """What inference reads of a manifest and of a task."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], labels: Sequence[str]) -> None:
        self.inputs, self.outputs, self.labels = inputs, outputs, labels
        self.tokenization = Tokenization(file="t", max_tokens=4) if any(isinstance(dim, str) for dim in inputs[0].shape[1:]) else None


class Model:
    """A served model that answers what it was made with."""

    name, version = "m", "7"

    def __init__(self, answer: Tensors, inputs: Sequence[TensorSpec] = (), labels: Sequence[str] = ()) -> None:
        outputs = [TensorSpec(name=name, dtype=array.dtype.name, shape=("batch", *array.shape[1:])) for name, array in answer.items()]
        hidden = TensorSpec(name="hidden", dtype="float32", shape=("batch",))
        self.manifest = Facts(inputs or [TensorSpec(name="x", dtype="uint8", shape=("batch", 2))], [*outputs, hidden], labels)
        self.task = type("Task", (), {"outputs": tuple(answer)})
        self.asked: list[tuple[int, float | None]] = []
        self._answer = answer

    async def infer(self, inputs: Tensors, rows: int, *, within_s: float | None = None) -> Inferred:  # noqa: ARG002
        self.asked.append((rows, within_s))
        return Inferred(self._answer, 0.1, 0.2)


def request(outputs: list[RequestedOutput] | None = None, *, binary: bool = False, **arrays: NDArray[Any]) -> InferRequest:
    arrays = arrays or {"x": np.zeros((2, 2), np.uint8)}
    inputs = [InputTensor(name, datatype(array.dtype.name), array) for name, array in arrays.items()]
    return InferRequest(inputs, outputs, binary, "id", 0.5)


def ask(model: Model, asked: InferRequest) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The JSON of the answer and its tensors."""
    served = cast(ServedModel, model)
    reply = response_writer.write(asyncio.run(inference.infer(served, inference.check(served, asked))))
    header = dict(reply.headers).get(response_writer.HEADER)
    return parsed(reply.body, header.decode() if header else None)


SCORES = np.array([[0.1, 0.7, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]], np.float32)
LABELS = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float32", "float64"])
def test_every_answer_comes_bit_by_bit(dtype: str, binary: bool) -> None:
    answer = (
        np.random.default_rng(0).random((2, 3, 5)).astype(dtype) if dtype.startswith("f") else np.arange(30).reshape(2, 3, 5).astype(dtype)
    )
    said, tensors = ask(Model({"y": answer}), request(binary=binary))
    assert (said["model_name"], said["model_version"], said["id"]) == ("m", "7", "id")
    assert tensors["y"].dtype == answer.dtype
    assert tensors["y"].tobytes() == answer.tobytes()
    assert said["outputs"][0]["shape"] == [2, 3, 5]


def test_rows_and_the_senders_own_deadline_go_to_the_model() -> None:
    model = Model({"y": SCORES})
    ask(model, request())
    assert model.asked == [(2, 0.5)]


def test_only_what_is_asked_for_comes_in_the_order_it_was_asked() -> None:
    model = Model({"y": SCORES, "z": SCORES * 2})
    assert [output["name"] for output in ask(model, request())[0]["outputs"]] == ["y", "z"]
    said, tensors = ask(model, request([RequestedOutput("z", binary=True), RequestedOutput("y")]))
    assert [output["name"] for output in said["outputs"]] == ["z", "y"]
    assert "data" not in said["outputs"][0]
    np.testing.assert_array_equal(tensors["z"], SCORES * 2)
    assert [output["name"] for output in ask(model, request([RequestedOutput("z")]))[0]["outputs"]] == ["z"]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (LABELS, 2, [["0.7:1:bee", "0.1:0:ant"], ["0.4:0:ant", "0.3:2:cat"]]),
        ((), 1, [["0.7:1"], ["0.4:0"]]),
        (("one",), 1, [["0.7:1"], ["0.4:0"]]),  # labels of something else
        (LABELS, 2**40, [["0.7:1:bee", "0.1:0:ant", "0.1:2:cat", "0.1:3:dog"], ["0.4:0:ant", "0.3:2:cat", "0.2:1:bee", "0.1:3:dog"]]),
    ],
)
def test_classes_in_place_of_a_tensor(labels: Sequence[str], classes: int, expected: list[list[str]], binary: bool) -> None:
    said, tensors = ask(Model({"y": SCORES}, labels=labels), request([RequestedOutput("y", binary, classes)]))
    assert said["outputs"][0]["datatype"] == "BYTES"
    assert np.vectorize(lambda text: text if isinstance(text, str) else text.decode())(tensors["y"]).tolist() == expected


def test_classes_of_scores_that_are_no_numbers() -> None:
    with pytest.raises(InferenceError, match="no numbers"):
        ask(Model({"y": np.array([[np.nan]], np.float32)}), request([RequestedOutput("y", classes=1)]))


def test_numbers_that_json_has_no_word_for_are_to_be_asked_for_as_bytes() -> None:
    odd = np.array([[np.nan, np.inf], [1, 2]], np.float32)
    with pytest.raises(RequestError, match="binary_data: true"):
        ask(Model({"y": odd}), request())
    assert ask(Model({"y": odd}), request(binary=True))[1]["y"].tobytes() == odd.tobytes()


def test_half_precision_goes_by_bytes_only() -> None:
    half = np.array([[1.5], [2.5]], np.float16)
    model = Model({"y": half}, [TensorSpec(name="x", dtype="float16", shape=("batch", 2))])
    x = np.ones((2, 2), np.float16)
    with pytest.raises(RequestError, match="FP16, which JSON has no number for"):
        ask(model, request(x=x))
    assert model.asked == []  # said before it costs anything
    assert ask(model, request(binary=True, x=x))[1]["y"].tobytes() == half.tobytes()


TEXT = [TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("ids", "mask")]
IDS = np.ones((2, 4), np.int64)


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        (request(y=np.zeros((2, 2), np.uint8)), RequestError, "expected inputs named x, got 'y'"),
        (request(x=np.zeros((2, 3), np.uint8)), ShapeMismatch, r"expected 'x' as UINT8\[N,2\], got UINT8\[2, 3\]"),
        (request(x=np.zeros(2, np.uint8)), ShapeMismatch, r"expected 'x' as UINT8\[N,2\]"),
        (request(x=np.zeros((2, 2), np.int8)), ShapeMismatch, r"got INT8\[2, 2\]"),
        (request([RequestedOutput("hidden")]), RequestError, "expected outputs named y, got 'hidden'"),
    ],
)
def test_what_does_not_fit_is_said(asked: InferRequest, kind: type[RequestError], message: str) -> None:
    model = Model({"y": SCORES})
    with pytest.raises(kind, match=message):
        ask(model, asked)
    assert model.asked == []


@pytest.mark.parametrize("wrong", [-1, 9])
def test_numbers_that_no_tokenizer_gives(wrong: int) -> None:
    model = Model({"y": SCORES}, TEXT)
    model.task.bounds = {"ids": 9, "mask": 2}  # type: ignore[attr-defined]
    ask(model, request(ids=IDS * 8, mask=IDS))
    with pytest.raises(ShapeMismatch, match="expected 'ids' to hold 0 to 8"):
        ask(model, request(ids=IDS * wrong, mask=IDS))
    assert len(model.asked) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request(ids=IDS), "'mask' is missing: send ids, mask"),
        (request(ids=IDS, mask=IDS[:1]), "the same rows in every input, got 1, 2"),
        (request(ids=np.ones((2, 5), np.int64), mask=IDS), "at most 4 tokens in a row, got 5"),
    ],
)
def test_inputs_that_do_not_fit_each_other(asked: InferRequest, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ask(Model({"y": SCORES}, TEXT), asked)
    ask(Model({"y": SCORES}, TEXT), request(ids=IDS, mask=IDS))
