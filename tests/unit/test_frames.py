"""Frames between an API worker and its runner: what is written is what is read, however it is cut on the way, and nothing else is read."""

from __future__ import annotations

import math
import random
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from ortserve import frames
from ortserve.errors import (
    FrameError,
    InferenceError,
    MethodNotAllowed,
    OrtServeError,
    QueueFull,
    RequestError,
    RunnerUnavailable,
    ServingError,
    ShapeMismatch,
)
from ortserve.frames import Answer, Frame, Going, Hello, Leave, Reader, Refusal, Reserve, Row, State, joined

numbers = st.integers(0, 2**64 - 1)
seconds = st.floats(allow_nan=False, allow_infinity=False)
dtypes = st.sampled_from([str(dtype) for dtype in frames._DTYPES])
tensors = st.dictionaries(
    st.text(max_size=20),
    dtypes.flatmap(lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))),
    max_size=4,
)
refusals = st.one_of(
    st.builds(lambda text, after: QueueFull(text, retry_after_s=after), st.text(max_size=99), st.floats(0, 1e6)),
    st.builds(lambda text: RunnerUnavailable(text, retry_after_s=2.0), st.text(max_size=99)),
    st.builds(InferenceError, st.text(max_size=99)),
    st.builds(ShapeMismatch, st.text(max_size=99)),
)
any_frame: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Reserve, numbers, st.integers(1, frames.MAX_RESERVED), seconds),
    st.builds(Row, numbers, tensors),
    st.builds(Leave, numbers),
    st.builds(Hello, st.dictionaries(st.text(max_size=9), st.one_of(st.integers(), st.text(max_size=9), st.lists(st.booleans())))),
    st.builds(Answer, numbers, seconds, tensors),
    st.builds(Refusal, numbers, refusals),
    st.builds(State, st.integers(0, 2**32 - 1), seconds),
    st.builds(Going),
)


def plain(frame: Frame) -> Any:
    """The frame as something that `==` compares: NaN equals NaN, 0.0 is not -0.0."""
    match frame:
        case Row(number, inputs):
            return Row, number, [(name, tensor.dtype, tensor.shape, tensor.tobytes()) for name, tensor in inputs.items()]
        case Answer(number, inference_s, outputs):
            return Answer, number, inference_s, plain(Row(0, outputs))
        case Refusal(number, error):
            return Refusal, number, type(error), str(error), getattr(error, "retry_after_s", None)
    return frame


@given(st.lists(any_frame, max_size=5), st.randoms(use_true_random=False))
def test_what_is_written_is_what_is_read_however_it_is_cut(sent: list[Frame], cuts: random.Random) -> None:
    data, reader, read = joined(sent), Reader(), []
    while data:
        length = cuts.choice([1, 3, 16, 100, len(data)])
        read += reader.feed(data[:length])
        data = data[length:]
    assert [plain(frame) for frame in read] == [plain(frame) for frame in sent]


@given(tensors)
def test_every_tensor_that_is_read_can_be_computed_with(inputs: dict[str, Any]) -> None:
    (frame,) = Reader().feed(joined([Row(1, inputs)]))
    assert isinstance(frame, Row)
    assert all(tensor.flags.aligned and tensor.flags.c_contiguous for tensor in frame.inputs.values())


def test_a_picture_is_not_copied_when_it_came_whole() -> None:
    data = joined([Row(1, {"pixels": np.zeros((1, 64, 64, 3), np.uint8)})])
    (frame,) = Reader().feed(data)
    assert isinstance(frame, Row)
    assert np.shares_memory(frame.inputs["pixels"], np.frombuffer(data, np.uint8))


def test_a_tensor_that_is_no_block_of_memory_is_written_in_its_order() -> None:
    turned = np.arange(12, dtype=np.float32).reshape(3, 4).T
    (frame,) = Reader().feed(joined([Row(1, {"x": turned, "one": np.float32(7)[np.newaxis]})]))
    assert isinstance(frame, Row)
    assert frame.inputs["x"].tolist() == turned.tolist()


# --- what is no frame ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_refused_or_waited_for(data: bytes) -> None:
    with suppress(FrameError):
        Reader(max_frame_bytes=100).feed(data)


@given(st.lists(any_frame, min_size=1, max_size=3), st.data())
def test_a_frame_with_a_changed_byte_is_refused_or_is_another_frame(sent: list[Frame], data: st.DataObject) -> None:
    spoiled = bytearray(joined(sent))
    spoiled[data.draw(st.integers(0, len(spoiled) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(FrameError):
        Reader(max_frame_bytes=10_000).feed(bytes(spoiled))


def framed(kind: int, body: bytes) -> bytes:
    return struct.pack("<IBQ", 9 + len(body), kind, 1) + body


def tensor(name: bytes = b"x", code: int = 0, shape: tuple[int, ...] = (1,)) -> bytes:
    return bytes([len(name), code, len(shape)]) + name + struct.pack(f"<{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (struct.pack("<I", 2**32 - 1), "frame of 9 to"),
        (struct.pack("<I", 8), "frame of 9 to"),
        (framed(0, b""), "kind of 1 to 8, got 0"),
        (framed(9, b""), "kind of 1 to 8, got 9"),
        (framed(1, struct.pack("<Id", 0, 1.0)), "1 to 16384 rows"),
        (framed(1, struct.pack("<Id", 2**32 - 1, 1.0)), "1 to 16384 rows"),
        (framed(1, struct.pack("<Id", 1, math.nan)), "a deadline, got 1 within nan"),
        (framed(1, b"x"), "none: unpack requires"),
        (framed(2, b""), "bytes that are none"),
        (framed(2, b"\xff"), "at most 64 tensors, got 255"),
        (framed(2, b"\x01" + tensor(code=12) + b"x"), "a dtype below 12"),
        (framed(2, b"\x01" + bytes([1, 0, 255]) + b"x"), "at most 8 dimensions, got 0 and 255"),
        (framed(2, b"\x01" + tensor(shape=(2**32 - 1,) * 8) + b"x"), "bytes of a tensor of its own name, got 1"),
        (framed(2, b"\x01" + tensor(shape=(4,)) + b"xyz"), "expected 4 bytes of a tensor of its own name, got 3"),
        (framed(2, b"\x01" + tensor() + b"xy"), "end of the frame, got 1 bytes more"),
        (framed(2, b"\x02" + tensor() * 2 + b"xy"), "a tensor of its own name"),
        (framed(2, b"\x01" + tensor(name=b"\xff") + b"x"), "codec can't decode"),
        (framed(2, b"\x01" + tensor(code=4) + b"\x02"), "true or false"),
        (framed(3, b"x"), "end of the frame"),
        (framed(4, b"[1]"), "a JSON object"),
        (framed(4, b"[" * 100_000), "bytes that are none"),
        (framed(4, b"\xff"), "bytes that are none"),
        (framed(6, struct.pack("<dB", 1.0, 18) + b"method_not_allowed"), "an error of a row"),
        (framed(7, b""), "bytes that are none"),
        (framed(8, b"x"), "end of the frame"),
    ],
)
def test_a_frame_that_lies_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        Reader().feed(data)


def test_a_large_frame_is_not_waited_for() -> None:
    with pytest.raises(FrameError, match="frame of 9 to 100 bytes, got 101"):
        Reader(max_frame_bytes=100).feed(struct.pack("<I", 101))


@pytest.mark.parametrize(
    "wrong", [np.array(["text"]), np.zeros(1, np.complex64), np.zeros((1,) * 9, np.uint8)], ids=["text", "complex", "9"]
)
def test_a_tensor_that_no_session_takes_is_not_sent(wrong: Any) -> None:
    with pytest.raises(ShapeMismatch, match="expected a tensor of uint8"):
        joined([Row(1, {"x": wrong})])


# --- errors ----------------------------------------------------------------------------------------------------------


def kinds(root: type[OrtServeError]) -> list[type[OrtServeError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in kinds(child))]


@pytest.mark.parametrize("kind", [kind for root in (RequestError, ServingError) for kind in kinds(root) if kind is not MethodNotAllowed])
def test_every_error_of_a_request_comes_out_as_it_went_in(kind: Any) -> None:
    (frame,) = Reader().feed(joined([Refusal(7, kind("why"))]))
    assert isinstance(frame, Refusal)
    assert (type(frame.error), str(frame.error)) == (kind, "why")


def test_an_error_of_another_version_is_one_of_the_service() -> None:
    (frame,) = Reader().feed(framed(6, struct.pack("<dB", math.nan, 7) + b"unheard" + b"of"))
    assert isinstance(frame, Refusal)
    assert (type(frame.error), str(frame.error)) == (ServingError, "of")


def test_a_wait_that_makes_no_sense_is_a_second() -> None:
    (frame,) = Reader().feed(framed(6, struct.pack("<dB", -1.0, 10) + b"queue_full"))
    assert isinstance(frame, Refusal)
    assert isinstance(frame.error, QueueFull)
    assert frame.error.retry_after_s == 1.0
