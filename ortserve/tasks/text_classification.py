"""Text classification: a text's tokens to the best classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ortserve.errors import InvalidParameter, ModelError
from ortserve.tasks.best_classes import DEFAULT_TOP_K, best_classes
from ortserve.tasks.endpoint import Endpoint, Json
from ortserve.tasks.row import Row
from ortserve.tasks.texts import TEXTS_PER_JOB, TextRequest, Texts

if TYPE_CHECKING:
    from ortserve.manifest import Manifest
    from ortserve.profile import Profile
    from ortserve.session import Tensors


class ClassifyTextRequest(TextRequest):
    """One text or many, and how many classes of each are told."""

    top_k: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, slots=True)
class Classified:
    """One text's answer."""

    predictions: list[dict[str, Any]]
    tokens: int


class TextClassification:
    """`ortserve.tasks.Task` for a model of token inputs and one output `probabilities`."""

    outputs: tuple[str, ...] = ("probabilities",)
    payloads_per_job = TEXTS_PER_JOB

    def __init__(self, manifest: Manifest, folder: Path, profile: Profile) -> None:
        """Raises ModelError where the manifest's tensors or labels are not those of a classifier of texts."""
        self._labels = manifest.labels
        answer = next((spec for spec in manifest.outputs if spec.name == "probabilities"), None)
        if answer is None or answer.shape[1:] != (len(manifest.labels),) or not manifest.labels:
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected an output probabilities[batch,{len(manifest.labels)}], one column "
                f"for each label, got {', '.join(f'{spec.name}{list(spec.shape)}' for spec in manifest.outputs) or 'none'}; build it again"
            )
        self._texts = Texts(manifest, folder, profile)
        self.bounds = self._texts.bounds
        self.endpoints: tuple[Endpoint, ...] = (Endpoint("/classify_text", Json(ClassifyTextRequest, "inputs", self._check), _render),)

    def _check(self, request: ClassifyTextRequest) -> None:
        if request.top_k is not None and request.top_k > len(self._labels):
            raise InvalidParameter(f"top_k: expected 1 to {len(self._labels)}, the number of classes, got {request.top_k}")

    def preprocess(self, payload: str, parameters: ClassifyTextRequest) -> Row:
        """The text's tokens, as `Texts.row`."""
        return self._texts.row(payload, truncate=parameters.truncate)

    def postprocess(self, outputs: Tensors, row: Row, parameters: ClassifyTextRequest) -> Classified:
        """The text's best classes, as `best_classes`."""
        top_k = parameters.top_k or min(DEFAULT_TOP_K, len(self._labels))
        return Classified(best_classes(outputs["probabilities"][0], self._labels, top_k), row.context)


def _render(model: str, version: str, values: Sequence[Classified]) -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "results": [{"predictions": value.predictions} for value in values],
        "usage": {"tokens": sum(value.tokens for value in values)},
    }
