"""sentence-transformers behind FastAPI, as tutorials write it; with a lock, without which its threads fight for the CPUs and it is slower.

`MODEL=DIRECTORY uvicorn sentence_transformers_app:app`
"""

from __future__ import annotations

import os
import threading

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(os.environ["MODEL"], device="cpu", local_files_only=True)
lock = threading.Lock()


class Request(BaseModel):
    """Texts."""

    inputs: list[str]


@app.post("/embed")
def embed(request: Request) -> dict[str, list[list[float]]]:
    """Their embeddings."""
    with lock:
        return {"embeddings": model.encode(request.inputs, batch_size=32, show_progress_bar=False).tolist()}
