"""One request, two models: what is on the picture, and what each of those things is. One model's answer is the other's input.

ORTSERVE_MODEL=faces,colours bentoml serve examples.pipeline.pipeline:Pipeline
curl -F image=@examples/faces/astronaut.jpg -F score_threshold=0.5 localhost:3000/detect_and_classify
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from typing import Any

import bentoml
from pydantic import BaseModel

from ortserve import images
from ortserve.schemas import Box, FoundObject, Prediction
from ortserve.services import OrtService
from ortserve.startup import resources
from service import ModelService, Picture, ScoreThreshold, TopK, profile


class Described(FoundObject):
    """One object, and what a classifier says of it."""

    predictions: list[Prediction]


class Description(BaseModel):
    """The answer to one picture."""

    objects: list[Described]


@bentoml.service(
    name="pipeline",
    service_class=OrtService,
    workers=profile.workers,
    resources=resources(profile) if profile.placement == "in_process" else {},
)
class Pipeline(ModelService.inner):  # every endpoint of the models, and one more
    """Finds objects and classifies each. The cut-outs of many requests share the classifier's batches: each model has its own batcher."""

    @bentoml.api
    async def detect_and_classify(self, image: Picture, score_threshold: ScoreThreshold = None, top_k: TopK = None) -> Description:
        """What is on one picture, and which class each thing is of."""
        call = self.bento_service.call
        found: list[dict[str, Any]] = (await call("/detect", image=image, score_threshold=score_threshold))["detections"]
        if not found:
            return Description(objects=[])
        pieces = await asyncio.to_thread(cut_out, image.read_bytes(), [Box(**each["box"]) for each in found])
        classified = (await call("/classify_batch", images=pieces, top_k=top_k))["results"]
        return Description(objects=[Described(**each, **said) for each, said in zip(found, classified, strict=True)])


def cut_out(picture: bytes, boxes: Sequence[Box]) -> list[bytes]:
    """Each box of the picture as a file of its own: BMP, which costs no compression and loses nothing."""
    whole = images.decode(picture, profile.limits)
    pieces = []
    for box in boxes:
        left, upper = max(0, int(box.x1)), max(0, int(box.y1))
        piece = whole.crop((left, upper, max(left + 1, round(box.x2)), max(upper + 1, round(box.y2))))
        file = io.BytesIO()
        piece.save(file, "BMP")
        pieces.append(file.getvalue())
    return pieces
