"""LitServe. Decoding happens in the worker, so a worker for each CPU with one thread each; batches of 4 at most, taken from what waits."""

# No postponed annotations here: LitServe reads the type of decode_request to know what to hand over.
import os
from typing import Any

import litserve
import numpy as np
import shared
from starlette.requests import Request


class Classify(litserve.LitAPI):
    """The model behind LitServe's queue."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it
        """The session, in the worker."""
        self.model = shared.model(threads=1, batches=(1, 4))

    def decode_request(self, request: Request) -> Any:
        """Pixels of the upload."""
        return shared.pixels(request["image"].file.read())

    def batch(self, inputs: list[Any]) -> Any:
        """Rows."""
        return np.stack(inputs)

    def predict(self, rows: Any) -> Any:
        """Probabilities."""
        return self.model(rows)

    def unbatch(self, output: Any) -> list[Any]:
        """Rows."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The best classes."""
        return shared.answer(output)


if __name__ == "__main__":
    api = Classify(max_batch_size=4, batch_timeout=0.001, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=shared.CPUS, timeout=60, track_requests=False)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="error", access_log=False)
