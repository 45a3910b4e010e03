"""FastAPI with everything that a page of advice would change: raw body, no schema, decoding in threads of its own, one run at a time with
every CPU, orjson's work left to the standard library since the answer is small. `uvicorn tuned:app`, with uvloop and httptools."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import shared
from fastapi import FastAPI, Request, Response

model = shared.model()
app = FastAPI(openapi_url=None)
decoders = ThreadPoolExecutor(shared.CPUS)
runner = ThreadPoolExecutor(1)


@app.post("/classify")
async def classify(request: Request) -> Response:
    """The best classes."""
    loop = asyncio.get_running_loop()
    pixels = await loop.run_in_executor(decoders, shared.pixels, await request.body())
    rows = await loop.run_in_executor(runner, model, pixels[None])
    return Response(json.dumps(shared.answer(rows[0])), media_type="application/json")


@app.get("/ready")
def ready() -> dict[str, bool]:
    """Where the bench looks."""
    return {"ready": True}
