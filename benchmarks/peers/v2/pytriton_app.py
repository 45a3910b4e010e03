"""PyTriton around one session of ONNX Runtime. MODEL names the file, PORT the HTTP port, CPUS the threads."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def main() -> None:
    """Serve until it is told to end."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ["CPUS"])
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
    [one] = session.get_inputs()

    @batch
    def infer(**inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return list(session.run(["probabilities"], inputs))

    config = TritonConfig(http_port=int(os.environ["PORT"]), grpc_port=int(os.environ["GRPC_PORT"]), allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[Tensor(name=one.name, dtype=np.uint8, shape=tuple(one.shape[1:]))],
            outputs=[Tensor(name="probabilities", dtype=np.float32, shape=(-1,))],
            config=ModelConfig(max_batch_size=8, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()


if __name__ == "__main__":
    main()
