"""What an API worker and its runner say to each other: frames of fixed fields and tensors' raw bytes. Reading one runs nothing it holds.

    API worker ── RESERVE, ROW, LEAVE ──> runner
    API worker <── HELLO, ANSWER, REFUSAL, STATE, GOING ── runner

A frame is its size in bytes (4), its kind (1), a row's number or 0 (8), and a body; all numbers little-endian. The numbers are the API
worker's own, rising. A row is reserved before its picture is decoded, then sent, then answered or refused; LEAVE gives it up at any time.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from ortserve import errors
from ortserve.errors import FrameError, OrtServeError, RequestError, ServingError, ShapeMismatch

if TYPE_CHECKING:
    from ortserve.session import Tensors

PATH = "/v1/rows"  # and the model's name behind it, of the request whose body and answer they are
PROTOCOL = 2  # of both ends; they come from one bento, but two machines may be updated one after the other
MAX_FRAME_BYTES = 64 * 1024 * 1024  # a row of 4096 x 4096 pixels of three bytes, and a quarter more
MAX_TENSORS = 64  # in one row
MAX_DIMENSIONS = 8
MAX_RESERVED = 1 << 14  # rows in one RESERVE: each may have to be refused by a frame of its own

Pieces = list[bytes | memoryview]  # of what is to be sent: a large tensor is not copied to stand behind its header

_SIZE = struct.Struct("<I")
_HEAD = struct.Struct("<BQ")  # kind, number
_RESERVE = struct.Struct("<Id")  # rows, seconds until their deadline
_ANSWER = struct.Struct("<d")  # seconds in the session
_REFUSAL = struct.Struct("<dB")  # seconds after which to try again, NaN where that is not known; the length of the code
_STATE = struct.Struct("<Id")  # rows waiting, seconds to drain
# A dtype's code is where it stands: a new one goes to the end.
_DTYPES = tuple(
    np.dtype(name)
    for name in ("uint8", "int8", "int32", "int64", "bool", "float16", "float32", "float64", "int16", "uint16", "uint32", "uint64")
)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}


class _Kind(IntEnum):
    RESERVE = 1
    ROW = 2
    LEAVE = 3
    HELLO = 4
    ANSWER = 5
    REFUSAL = 6
    STATE = 7
    GOING = 8


@dataclass(frozen=True, slots=True)
class Reserve:
    """Places for the rows `number` to `number + rows - 1`, all or none, to be answered within so many seconds."""

    number: int
    rows: int
    within_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """The inputs of a row that has a place."""

    number: int
    inputs: Tensors


@dataclass(frozen=True, slots=True)
class Leave:
    """Nobody waits for that row any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Hello:
    """What the runner runs. Its first frame."""

    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A row's outputs."""

    number: int
    inference_s: float
    outputs: Tensors


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row has no answer."""

    number: int
    error: RequestError | ServingError


@dataclass(frozen=True, slots=True)
class State:
    """How full the queue is. Comes with other frames, and by itself at least every second: a runner that is silent is lost."""

    rows_waiting: int
    drain_s: float


@dataclass(frozen=True, slots=True)
class Going:
    """The runner was told to end: it answers what this stream still sends, a new stream is better made elsewhere."""


Frame = Reserve | Row | Leave | Hello | Answer | Refusal | State | Going


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(frame: Frame) -> Pieces:
    """The bytes of a frame, in pieces. Raises ShapeMismatch where a tensor is of a kind that no session takes."""
    match frame:
        case Reserve(number, rows, within_s):
            return _framed(_Kind.RESERVE, number, [_RESERVE.pack(rows, within_s)])
        case Row(number, inputs):
            return _framed(_Kind.ROW, number, _tensors(inputs))
        case Leave(number):
            return _framed(_Kind.LEAVE, number, [])
        case Hello(facts):
            return _framed(_Kind.HELLO, 0, [json.dumps(facts).encode()])
        case Answer(number, inference_s, outputs):
            return _framed(_Kind.ANSWER, number, [_ANSWER.pack(inference_s), *_tensors(outputs)])
        case Refusal(number, error):
            code = error.code.encode()
            retry_after_s = getattr(error, "retry_after_s", math.nan)
            return _framed(_Kind.REFUSAL, number, [_REFUSAL.pack(retry_after_s, len(code)), code, str(error).encode()])
        case State(rows_waiting, drain_s):
            return _framed(_Kind.STATE, 0, [_STATE.pack(rows_waiting, drain_s)])
        case Going():
            return _framed(_Kind.GOING, 0, [])


def _framed(kind: _Kind, number: int, body: Pieces) -> Pieces:
    size = _HEAD.size + sum(len(piece) for piece in body)
    if size > MAX_FRAME_BYTES:
        raise ShapeMismatch(f"expected a row of at most {MAX_FRAME_BYTES} bytes, got {size}: send a smaller one")
    return [_SIZE.pack(size) + _HEAD.pack(kind, number), *body]


def _tensors(tensors: Tensors) -> Pieces:
    """How many; for each the length of its name, its dtype and dimensions, name and shape; then the data of all, in order."""
    if len(tensors) > MAX_TENSORS:
        raise ShapeMismatch(f"expected at most {MAX_TENSORS} tensors, got {len(tensors)}: send only the model's inputs")
    head, data = [bytes([len(tensors)])], []
    for name, tensor in tensors.items():
        code, text = _CODES.get(tensor.dtype), name.encode()
        if code is None or tensor.ndim > MAX_DIMENSIONS or len(text) > 255:
            raise ShapeMismatch(
                f"expected a tensor of {', '.join(map(str, _DTYPES))}, got {tensor.dtype} {list(tensor.shape)} {name[:40]!r}"
            )
        head.append(bytes([len(text), code, tensor.ndim]) + text + struct.pack(f"<{tensor.ndim}I", *tensor.shape))
        data.append(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return [b"".join(head), *data]


# --- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """Cuts what arrives into frames, however it was split on the way."""

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._pieces: list[bytes | memoryview] = []  # of the frame that is not complete
        self._have = 0
        self._need = _SIZE.size

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. Their tensors are views of what arrived, where that is aligned for them. Raises FrameError."""
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        whole = memoryview(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        frames: list[Frame] = []
        at = 0
        while True:
            self._need = _SIZE.size
            if self._have - at < self._need:
                break
            (size,) = _SIZE.unpack_from(whole, at)
            if not _HEAD.size <= size <= self._max_frame_bytes:
                raise FrameError(f"expected a frame of {_HEAD.size} to {self._max_frame_bytes} bytes, got {size}")
            self._need = _SIZE.size + size
            if self._have - at < self._need:
                break
            frames.append(_decode(whole[at + _SIZE.size : at + self._need]))
            at += self._need
        self._have -= at
        self._pieces = [whole[at:]] if self._have else []
        return frames


def _decode(frame: memoryview) -> Frame:
    try:
        kind, number = _HEAD.unpack_from(frame)
        body = frame[_HEAD.size :]
        match kind:
            case _Kind.RESERVE:
                rows, within_s = _RESERVE.unpack(body)
                if not 1 <= rows <= MAX_RESERVED or not math.isfinite(within_s):
                    raise FrameError(f"expected 1 to {MAX_RESERVED} rows and a deadline, got {rows} within {within_s} s")
                return Reserve(number, rows, within_s)
            case _Kind.ROW:
                return Row(number, _read_tensors(body))
            case _Kind.LEAVE:
                _expect_end(body)
                return Leave(number)
            case _Kind.HELLO:
                facts = json.loads(bytes(body))
                if not isinstance(facts, dict):
                    raise FrameError("expected the facts as a JSON object, got something else")
                return Hello(facts)
            case _Kind.ANSWER:
                (inference_s,) = _ANSWER.unpack_from(body)
                return Answer(number, inference_s, _read_tensors(body[_ANSWER.size :]))
            case _Kind.REFUSAL:
                retry_after_s, length = _REFUSAL.unpack_from(body)
                text = body[_REFUSAL.size :]
                return Refusal(number, _error(str(text[:length], "ascii"), str(text[length:], "utf-8"), retry_after_s))
            case _Kind.STATE:
                rows_waiting, drain_s = _STATE.unpack(body)
                return State(rows_waiting, drain_s if math.isfinite(drain_s) else 1.0)
            case _Kind.GOING:
                _expect_end(body)
                return Going()
            case _:
                raise FrameError(f"expected a kind of 1 to {len(_Kind)}, got {kind}")
    except (struct.error, IndexError, ValueError, RecursionError) as error:  # ValueError: also of text and of JSON
        raise FrameError(f"expected a whole frame, got {len(frame)} bytes that are none: {error}") from None


def _read_tensors(body: memoryview) -> Tensors:
    count, at = body[0], 1
    if count > MAX_TENSORS:
        raise FrameError(f"expected at most {MAX_TENSORS} tensors, got {count}")
    specs: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    for _ in range(count):
        length, code, dimensions = body[at], body[at + 1], body[at + 2]
        if code >= len(_DTYPES) or dimensions > MAX_DIMENSIONS:
            raise FrameError(f"expected a dtype below {len(_DTYPES)} and at most {MAX_DIMENSIONS} dimensions, got {code} and {dimensions}")
        at += 3
        name = str(body[at : at + length], "utf-8")
        at += length
        specs.append((name, _DTYPES[code], struct.unpack_from(f"<{dimensions}I", body, at)))
        at += 4 * dimensions
    tensors: Tensors = {}
    for name, dtype, shape in specs:
        count = math.prod(shape)
        size = count * dtype.itemsize
        if size > len(body) - at or name in tensors:
            raise FrameError(f"expected {size} bytes of a tensor of its own name, got {len(body) - at} for {name[:40]!r}")
        data = body[at : at + size]
        if dtype == np.bool_ and size and np.frombuffer(data, np.uint8).max() > 1:
            raise FrameError("expected true or false in a tensor of bool, got another byte")
        tensor = np.frombuffer(data, dtype).reshape(shape)
        tensors[name] = tensor if tensor.flags.aligned else tensor.copy()
        at += size
    _expect_end(body[at:])
    return tensors


def _expect_end(rest: memoryview) -> None:
    if len(rest):
        raise FrameError(f"expected the end of the frame, got {len(rest)} bytes more")


def _kinds(root: type[OrtServeError]) -> dict[str, type[Any]]:
    """Every error below `root`, and itself, by its code."""
    return {root.code: root} | {code: kind for child in root.__subclasses__() for code, kind in _kinds(child).items()}


_ERRORS = {**_kinds(ServingError), **_kinds(RequestError)}


def _error(code: str, message: str, retry_after_s: float) -> RequestError | ServingError:
    """The error of that code; one of a code that is not known here is a ServingError."""
    kind = _ERRORS.get(code, ServingError)
    if issubclass(kind, errors.QueueFull | errors.RunnerUnavailable):
        return kind(message, retry_after_s=retry_after_s if 0 <= retry_after_s < math.inf else 1.0)
    if kind is errors.MethodNotAllowed:
        raise FrameError("expected an error of a row, got one of a route")
    error: RequestError | ServingError = kind(message)
    return error


def joined(frames: Sequence[Frame]) -> bytes:
    """The bytes of those frames, one behind the other."""
    return b"".join(piece for frame in frames for piece in encode(frame))
