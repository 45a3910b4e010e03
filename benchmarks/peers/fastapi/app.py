"""One picture a request behind FastAPI, as tutorials write it: an upload, a function in the thread pool. `BACKEND=onnx uvicorn app:app`.

BACKEND: onnx, eager, script, compile. A lock around the model: without it the threads of many requests fight for the CPUs.
"""

from __future__ import annotations

import os
import threading
from typing import Annotated, Any

import numpy as np
import shared
from fastapi import FastAPI, File, UploadFile

BACKEND = os.environ["BACKEND"]
if BACKEND == "onnx":
    model = shared.model()
else:
    import shared_torch

    model = shared_torch.Torch(BACKEND)
app = FastAPI()
lock = threading.Lock()


@app.post("/classify")
def classify(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
    """The best classes."""
    rows = shared.pixels(image.file.read())[np.newaxis]
    with lock:
        return shared.answer(model(rows)[0])


@app.get("/ready")
def ready() -> dict[str, bool]:
    """Where the bench looks."""
    return {"ready": True}
