"""The peer to beat: the same model and the same pixels behind BentoML's own adaptive batching, `@bentoml.api(batchable=True)`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
import shared
from bentoml.validators import ContentType


@bentoml.service(name="batchable", traffic={"timeout": 60}, workers=shared.WORKERS, logging={"access": {"enabled": False}})
class Batchable:
    """Decode in the endpoint, batch in BentoML's dispatcher, batches of 4 at most; as patient as this service's default profile."""

    def __init__(self) -> None:
        self.model = shared.model(batches=(1, 4))
        self.decoders = ThreadPoolExecutor(shared.CPUS)

    @bentoml.api(batchable=True, max_batch_size=4, max_latency_ms=10_000)
    def classify(self, image: list[Annotated[Path, ContentType("image/*")]]) -> list[dict[str, Any]]:
        """Decode and classify one batch."""
        rows = self.model(np.stack(list(self.decoders.map(lambda one: shared.pixels(one.read_bytes()), image))))
        return [shared.answer(row) for row in rows]
