"""PyTriton: Triton's dynamic batcher in front of Python. Two instances call one session of one thread at once; decoding has
threads of its own; batches of 4 at most, none waited for."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import shared
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model = shared.model(batches=(1, 4))
decoders = ThreadPoolExecutor(shared.CPUS)


@batch
def classify(image: Any) -> dict[str, Any]:
    """The best classes of each picture, as JSON."""
    rows = model(np.stack(list(decoders.map(shared.pixels, image[:, 0]))))
    return {"answer": np.array([[json.dumps(shared.answer(row)).encode()] for row in rows], dtype=object)}


if __name__ == "__main__":
    config = TritonConfig(
        http_port=int(os.environ["PORT"]),
        http_address="127.0.0.1",
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classify",
            infer_func=[classify] * shared.WORKERS,
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=4, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
