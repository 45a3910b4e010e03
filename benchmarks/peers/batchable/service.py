"""The peer to beat: the same model and the same decoding behind BentoML's own adaptive batching, `@bentoml.api(batchable=True)`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from ortserve import images, profile  # noqa: E402
from ortserve.manifest import Manifest  # noqa: E402
from ortserve.session import Session  # noqa: E402

EXECUTION = profile.load("default").execution[-1]  # the CPU's
LIMITS = profile.Limits()


@bentoml.service(name="batchable", traffic={"timeout": 60})
class Batchable:
    """Decode in the endpoint, batch in BentoML's dispatcher, run in the same session as ours."""

    def __init__(self) -> None:
        folder = Path(bentoml.models.get(os.environ["ORTSERVE_MODEL"]).path)
        self.manifest = Manifest.read(folder)
        self.session = Session.open(self.manifest.verified_path(folder, "fp32"), EXECUTION, outputs=["probabilities"])
        self.session.warm_up([1, EXECUTION.batching.max_batch_size])

    @bentoml.api(batchable=True, max_batch_size=max(2, EXECUTION.batching.max_batch_size), max_latency_ms=int(LIMITS.request_timeout_ms))
    def classify(self, image: list[Annotated[Path, ContentType("image/*")]]) -> list[dict[str, Any]]:
        """Decode and classify one batch."""
        pixels = np.stack([images.load(one.read_bytes(), self.manifest.preprocessing, LIMITS, decoder="exact") for one in image])
        rows = self.session.run({"pixels": pixels})["probabilities"]
        return [{"class_id": int(row.argmax()), "score": float(row.max())} for row in rows]
