"""The service: what it offers over HTTP, and the one line that decides how it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import bentoml
from bentoml.validators import ContentType
from pydantic import Field

from ortserve.model_store import wanted_models
from ortserve.schemas import (
    BatchClassification,
    BatchDetection,
    Classification,
    Detection,
    Embeddings,
    OpenAIEmbeddings,
    TextClassifications,
)
from ortserve.services import OrtService, runners
from ortserve.startup import exit_with_one_line, profile_from_environment, resources

with exit_with_one_line():
    profile = profile_from_environment()  # ORTSERVE_PROFILE: a shipped name or a file
    models = wanted_models(profile)  # ORTSERVE_MODEL, or the profile's: tags of the BentoML store; pinned when a bento is built

Model = Annotated[str | None, Field(description="NAME or NAME:VERSION of a served model: to choose where this path has several.")]
Picture = Annotated[Path, ContentType("image/*")]
TopK = Annotated[int | None, Field(description="How many predictions, best first: 1 to the number of classes.", ge=1)]
OneText = Annotated[str, Field(min_length=1)]
Inputs = Annotated[OneText | list[OneText], Field(description="One text or many.")]
Truncate = Annotated[bool, Field(description="Cut a text longer than the model takes; it is refused else.")]

ScoreThreshold = Annotated[float | None, Field(description="A box must score more than this, 0 to 1. 0.25 where not given.", ge=0, le=1)]
IouThreshold = Annotated[
    float | None, Field(description="Of two boxes of a class that overlap more than this, the better one is answered. 0.7.", ge=0, le=1)
]
MaxDetections = Annotated[int | None, Field(description="How many objects at most, best first: 1 to the model's own limit.", ge=1)]
Classes = Annotated[str | None, Field(description="Only these classes: labels or numbers, separated by commas.")]


@bentoml.service(
    name="model_service",
    service_class=OrtService,
    workers=profile.worker_count,
    resources=resources(profile) if profile.placement == "in_process" else {},  # else the devices are the runners'
)
class ModelService:
    """Verified models, each behind an adaptive batcher. Errors have one shape: {"error": {"code", "message", "request_id"}}."""

    profile = profile
    models = models
    runners = runners(profile, models)  # sessions and batchers in a process of their own, where the profile says `placement: separate`
    bento_service: OrtService  # this service's own, set by BentoML

    @bentoml.api
    async def classify(self, image: Picture, top_k: TopK = None, model: Model = None) -> Classification:
        """Classify one picture: a file in the form field `image`, or its bytes as the body with Content-Type: image/*."""
        return Classification.model_validate(await self.bento_service.call("/classify", image=image, top_k=top_k, model=model))

    @bentoml.api
    async def classify_batch(self, images: list[Picture], top_k: TopK = None, model: Model = None) -> BatchClassification:
        """Classify many pictures: an answer or an error for each, in the order they were sent."""
        return BatchClassification.model_validate(await self.bento_service.call("/classify_batch", images=images, top_k=top_k, model=model))

    @bentoml.api
    async def detect(
        self,
        image: Picture,
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        max_detections: MaxDetections = None,
        classes: Classes = None,
        model: Model = None,
    ) -> Detection:
        """Find the objects on one picture: a file in the form field `image`, or its bytes as the body with Content-Type: image/*."""
        fields = {"score_threshold": score_threshold, "iou_threshold": iou_threshold, "max_detections": max_detections, "classes": classes}
        fields["model"] = model
        return Detection.model_validate(await self.bento_service.call("/detect", image=image, **fields))

    @bentoml.api
    async def detect_batch(
        self,
        images: list[Picture],
        score_threshold: ScoreThreshold = None,
        iou_threshold: IouThreshold = None,
        max_detections: MaxDetections = None,
        classes: Classes = None,
        model: Model = None,
    ) -> BatchDetection:
        """Find the objects on many pictures: an answer or an error for each, in the order they were sent."""
        fields = {"score_threshold": score_threshold, "iou_threshold": iou_threshold, "max_detections": max_detections, "classes": classes}
        fields["model"] = model
        return BatchDetection.model_validate(await self.bento_service.call("/detect_batch", images=images, **fields))

    @bentoml.api
    async def embed(self, inputs: Inputs, truncate: Truncate = False, model: Model = None) -> Embeddings:
        """Embed one text or many."""
        return Embeddings.model_validate(await self.bento_service.call("/embed", inputs=inputs, truncate=truncate, model=model))

    @bentoml.api(route="/v1/embeddings")
    async def openai_embeddings(
        self,
        input: Inputs,
        model: Annotated[str, Field(description="The served model's name.")],
        encoding_format: Literal["float", "base64"] = "float",
        dimensions: Annotated[int | None, Field(description="The model's own, or nothing: no embedding is cut.")] = None,
        user: Annotated[str | None, Field(description="Taken and not looked at.")] = None,
        truncate: Truncate = False,
    ) -> OpenAIEmbeddings:
        """Embed one text or many, in the shape of OpenAI's API: its clients work with this service's address and /v1."""
        fields = {"encoding_format": encoding_format, "dimensions": dimensions, "user": user, "truncate": truncate}
        answer = await self.bento_service.call("/v1/embeddings", input=input, model=model, **fields)
        return OpenAIEmbeddings.model_validate(answer)

    @bentoml.api
    async def classify_text(
        self, inputs: Inputs, top_k: TopK = None, truncate: Truncate = False, model: Model = None
    ) -> TextClassifications:
        """Classify one text or many."""
        answer = await self.bento_service.call("/classify_text", inputs=inputs, top_k=top_k, truncate=truncate, model=model)
        return TextClassifications.model_validate(answer)
