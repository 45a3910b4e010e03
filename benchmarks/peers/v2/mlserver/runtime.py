"""A runtime of MLServer around one session of ONNX Runtime. MODEL names the file, CPUS the threads."""

from __future__ import annotations

import os

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    """The model."""

    async def load(self) -> bool:
        """True, once the session is open."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["CPUS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The probabilities of the one input's rows."""
        tensor = NumpyCodec.decode_input(payload.inputs[0])
        [probabilities] = self._session.run(["probabilities"], {payload.inputs[0].name: tensor})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", probabilities)])
