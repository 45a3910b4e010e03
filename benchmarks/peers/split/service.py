"""BentoML's own way to split: a service that decodes in front of one that runs, joined by `bentoml.depends`, batches made by BentoML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
import shared
from bentoml.validators import ContentType
from numpy.typing import NDArray


@bentoml.service(name="runner", traffic={"timeout": 60}, workers=1, logging={"access": {"enabled": False}})
class Runner:
    """One process with every CPU."""

    def __init__(self) -> None:
        self.model = shared.model(batches=(1, 4))

    @bentoml.api(batchable=True, max_batch_size=4, max_latency_ms=10_000)
    def run(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities."""
        return self.model(rows)  # type: ignore[no-any-return]


@bentoml.service(name="split", traffic={"timeout": 60}, workers=1, logging={"access": {"enabled": False}})
class Split:
    """Decodes."""

    runner = bentoml.depends(Runner)

    @bentoml.api
    async def classify(self, image: Annotated[Path, ContentType("image/*")]) -> dict[str, Any]:
        """The best classes."""
        pixels = shared.pixels(image.read_bytes())
        rows = await self.runner.to_async.run(pixels[np.newaxis])
        return shared.answer(rows[0])
