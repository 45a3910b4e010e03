"""Text embedding: a text's tokens to one vector; in our own shape and in that of OpenAI's embeddings API."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from ortserve.errors import InferenceError, InvalidParameter, ModelError
from ortserve.tasks.endpoint import Endpoint, Json, JsonRequest
from ortserve.tasks.row import Row
from ortserve.tasks.texts import TEXTS_PER_JOB, OneOrMany, TextRequest, Texts

if TYPE_CHECKING:
    from ortserve.manifest import Manifest
    from ortserve.profile import Profile
    from ortserve.session import Tensors


class OpenAIRequest(JsonRequest):
    """What OpenAI's `POST /v1/embeddings` takes, and `truncate`."""

    model_config = ConfigDict(strict=True)

    model: str
    input: OneOrMany
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = Field(default=None, max_length=512)  # taken and not looked at
    truncate: bool = False

    @field_validator("input", mode="before")
    @classmethod
    def _no_token_ids(cls, value: Any) -> Any:
        """Ids are of OpenAI's vocabulary: taken for this model's, they would be answered with an embedding of something else."""
        first = value[0] if isinstance(value, list | tuple) and value else None
        if isinstance(first, int) or (isinstance(first, list | tuple) and first and isinstance(first[0], int)):
            raise PydanticCustomError("token_ids", "expected text, got token ids: this model has a vocabulary of its own")
        return value

    def payloads(self) -> Sequence[str]:
        """The texts."""
        return self.input


@dataclass(frozen=True, slots=True)
class Embedded:
    """One text's answer."""

    embedding: NDArray[np.float32] | str  # a str is base64 of little-endian float32
    tokens: int


class FeatureExtraction:
    """`ortserve.tasks.Task` for a model of token inputs and one output `embedding`."""

    outputs: tuple[str, ...] = ("embedding",)
    payloads_per_job = TEXTS_PER_JOB

    def __init__(self, manifest: Manifest, folder: Path, profile: Profile) -> None:
        """Raises ModelError where the manifest's tensors are not those of an embedder of texts."""
        answer = next((spec for spec in manifest.outputs if spec.name == "embedding"), None)
        if manifest.embedding is None or answer is None or answer.shape != ("batch", manifest.embedding.dimension):
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected an output embedding[batch,dimension] and the facts of it in its "
                f"manifest, got {', '.join(f'{spec.name}{list(spec.shape)}' for spec in manifest.outputs) or 'none'}; build it again"
            )
        self._texts = Texts(manifest, folder, profile)
        self.bounds = self._texts.bounds
        self.endpoints: tuple[Endpoint, ...] = (
            Endpoint("/embed", Json(TextRequest, "inputs"), _render),
            Endpoint("/v1/embeddings", Json(OpenAIRequest, "input", self._check), _render_openai),
        )
        self._dimension = manifest.embedding.dimension

    def _check(self, request: OpenAIRequest) -> None:
        if request.dimensions not in (None, self._dimension):
            raise InvalidParameter(f"dimensions: expected {self._dimension} or nothing: no embedding is cut")

    def preprocess(self, payload: str, parameters: TextRequest | OpenAIRequest) -> Row:
        """The text's tokens, as `Texts.row`."""
        return self._texts.row(payload, truncate=parameters.truncate)

    def postprocess(self, outputs: Tensors, row: Row, parameters: TextRequest | OpenAIRequest) -> Embedded:
        """The text's embedding, float32[dimension] or base64 of it.

        Raises InferenceError where a component is not a number: JSON has no word for it and a caller no use.
        """
        embedding = outputs["embedding"][0]
        if not np.isfinite(embedding).all():
            raise InferenceError("the model answered this text with an embedding that is no numbers: send another text")
        if isinstance(parameters, OpenAIRequest) and parameters.encoding_format == "base64":
            return Embedded(base64.b64encode(embedding.astype("<f4").tobytes()).decode(), row.context)
        return Embedded(embedding, row.context)


def _render(model: str, version: str, values: Sequence[Embedded]) -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "embeddings": [value.embedding for value in values],
        "usage": {"tokens": sum(value.tokens for value in values)},
    }


def _render_openai(model: str, version: str, values: Sequence[Embedded]) -> dict[str, Any]:  # noqa: ARG001  OpenAI's shape has no version
    tokens = sum(value.tokens for value in values)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": value.embedding} for index, value in enumerate(values)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
