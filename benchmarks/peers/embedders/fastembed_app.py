"""fastembed (ONNX Runtime) behind FastAPI. `MODEL=DIRECTORY uvicorn fastembed_app:app`, the directory with onnx/model.onnx in it."""

from __future__ import annotations

import os
import threading

from fastapi import FastAPI
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
from pydantic import BaseModel

NAME = "local/model"
TextEmbedding.add_custom_model(
    model=NAME,
    pooling=PoolingType.MEAN,
    normalization=True,
    sources=ModelSource(hf=NAME),
    dim=384,
    model_file="onnx/model.onnx",
)
app = FastAPI()
model = TextEmbedding(NAME, specific_model_path=os.environ["MODEL"], threads=len(os.sched_getaffinity(0)))
lock = threading.Lock()


class Request(BaseModel):
    """Texts."""

    inputs: list[str]


@app.post("/embed")
def embed(request: Request) -> dict[str, list[list[float]]]:
    """Their embeddings."""
    with lock:
        return {"embeddings": [embedding.tolist() for embedding in model.embed(request.inputs, batch_size=32)]}
