"""MLServer's runtime for the model: its own batcher, batches of 4 at most; no worker processes, which would copy every picture."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import shared
from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


def decoded(data: Any) -> Any:
    """Pixels of one element of the request."""
    return shared.pixels(base64.b64decode(data))


class Classify(MLModel):
    """Pictures in base64, as JSON can carry them."""

    async def load(self) -> bool:
        """The session."""
        self.model = shared.model(batches=(1, 4))
        self.decoders = ThreadPoolExecutor(shared.CPUS)
        self.runner = ThreadPoolExecutor(1)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The best classes of each picture, as JSON."""
        loop = asyncio.get_running_loop()
        data = payload.inputs[0].data
        pixels = await asyncio.gather(*(loop.run_in_executor(self.decoders, decoded, one) for one in data))
        rows = await loop.run_in_executor(self.runner, self.model, np.stack(pixels))
        texts = [json.dumps(shared.answer(row)) for row in rows]
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("answer", texts)])
