"""The service: what it offers over HTTP, and the one line that decides how it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import bentoml
from bentoml.validators import ContentType
from pydantic import Field

from ortserve.bento import exit_with_one_line, wanted_model
from ortserve.schemas import BatchClassification, Classification
from ortserve.services import RUNNER, OrtRunner, OrtService
from ortserve.startup import profile_from_environment, resources

with exit_with_one_line():
    profile = profile_from_environment()  # ORTSERVE_PROFILE: a shipped name or a file
    model = wanted_model()  # ORTSERVE_MODEL: a tag of the BentoML store; pinned when a bento is built

Picture = Annotated[Path, ContentType("image/*")]
TopK = Annotated[int | None, Field(description="How many predictions, best first: 1 to the number of classes.", ge=1)]


@bentoml.service(name=RUNNER, service_class=OrtRunner, workers=1, resources=resources(profile))
class ModelRunner:
    """The model and its batcher in a process of their own, where the profile says `placement: separate`; left out otherwise."""

    profile = profile
    model = model

    @bentoml.on_deployment
    @staticmethod
    def begin() -> None:
        """Before any worker exists."""
        cast(OrtRunner, ModelRunner).begin()


@bentoml.service(
    name="model_service",
    service_class=OrtService,
    workers=profile.workers,
    resources=resources(profile) if profile.placement == "in_process" else {},  # else the device is the runner's
)
class ModelService:
    """A verified model behind an adaptive batcher. Errors have one shape: {"error": {"code", "message", "request_id"}}."""

    profile = profile
    model = model
    runner = bentoml.depends(ModelRunner)
    bento_service: OrtService  # this service's own, set by BentoML

    @bentoml.on_deployment
    @staticmethod
    def begin() -> None:
        """Before any worker exists."""
        cast(OrtService, ModelService).begin()

    @bentoml.api
    async def classify(self, image: Picture, top_k: TopK = None) -> Classification:
        """Classify one picture: a file in the form field `image`, or its bytes as the body with Content-Type: image/*."""
        return Classification.model_validate(await self.bento_service.call("/classify", image=image, top_k=top_k))

    @bentoml.api
    async def classify_batch(self, images: list[Picture], top_k: TopK = None) -> BatchClassification:
        """Classify many pictures: an answer or an error for each, in the order they were sent."""
        return BatchClassification.model_validate(await self.bento_service.call("/classify_batch", images=images, top_k=top_k))
