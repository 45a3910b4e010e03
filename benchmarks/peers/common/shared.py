"""What every peer does alike: the same decoding, the same graph, the same answer. Read from the environment, so that no peer differs in it.

MODEL the ONNX file; WEIGHTS and NET those of PyTorch; RESIZE pixels of the shorter side; CPUS of the machine, for decoders and workers;
THREADS of the session; WORKERS processes, or instances, where a peer has a set-up with several; EMPTY the server without a model, to see
what its memory is without one.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image

SIDE = 224
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
CPUS = int(os.environ.get("CPUS", "2"))
THREADS = int(os.environ.get("THREADS", "2"))
WORKERS = int(os.environ.get("WORKERS", "1"))


def pixels(data: bytes) -> Any:
    """uint8[224,224,3] of a JPEG, as torchvision's reference transform makes them; of the pixels themselves where they were sent."""
    if len(data) == SIDE * SIDE * 3:
        return np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3)
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    short = int(os.environ["RESIZE"])
    scaled = (int(short * width / height), short) if height <= width else (short, int(short * height / width))
    picture = picture.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (round((side - SIDE) / 2) for side in scaled)
    return np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))


def answer(row: Any) -> dict[str, Any]:
    """The five best classes of one row of probabilities."""
    best = np.argpartition(row, -5)[-5:]
    return {"predictions": [{"class_id": int(index), "score": float(row[index])} for index in best[np.argsort(-row[best])]]}


class Onnx:
    """An ONNX Runtime session, warm: uint8[N,224,224,3] to probabilities float32[N,classes]."""

    def __init__(self, threads: int = THREADS, batches: tuple[int, ...] = (1,)) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or decoding starves: 17 became 4 pictures/s
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        for rows in batches:
            self(np.zeros((rows, SIDE, SIDE, 3), np.uint8))

    def __call__(self, rows: Any) -> Any:
        """Probabilities."""
        return self.session.run(["probabilities"], {"pixels": rows})[0]


class Nothing:
    """In place of a model, where the server is looked at without one."""

    def __call__(self, rows: Any) -> Any:
        """Zeros."""
        return np.zeros((len(rows), 10), np.float32)


def model(threads: int = THREADS, batches: tuple[int, ...] = (1,)) -> Any:
    """The session, or nothing."""
    return Nothing() if os.environ.get("EMPTY") else Onnx(threads, batches)
