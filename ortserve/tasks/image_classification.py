"""Image classification: one picture's bytes to `uint8[1, height, width, 3]`, probabilities to the best classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ortserve import images
from ortserve.errors import ModelError
from ortserve.tasks.best_classes import DEFAULT_TOP_K, best_classes
from ortserve.tasks.endpoint import Endpoint, Files, results, single
from ortserve.tasks.parameters import refuse_unknown, whole_number
from ortserve.tasks.row import Begun, Row

if TYPE_CHECKING:
    from ortserve.manifest import Manifest
    from ortserve.profile import Profile
    from ortserve.session import Tensors


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a caller may choose."""

    top_k: int  # how many classes the answer names, best first


class ImageClassification:
    """`ortserve.tasks.Task` for a model of one picture input and one output `probabilities`."""

    outputs: tuple[str, ...] = ("probabilities",)
    payloads_per_job = 1

    def __init__(self, manifest: Manifest, folder: Path, profile: Profile) -> None:  # noqa: ARG002  all it needs is in the manifest
        """Raises ModelError where the manifest's tensors or labels are not those of a classifier of pictures."""
        how = manifest.preprocessing
        if how is None:
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected how pictures are preprocessed in its manifest; build it"
            )
        picture = ("uint8", (how.height, how.width, 3))
        if len(manifest.inputs) != 1 or (manifest.inputs[0].dtype, manifest.inputs[0].shape[1:]) != picture:
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected one input uint8[batch,{how.height},{how.width},3], got "
                f"{', '.join(f'{spec.name} {spec.dtype}{list(spec.shape)}' for spec in manifest.inputs) or 'none'}; build it again"
            )
        answer = next((spec for spec in manifest.outputs if spec.name == "probabilities"), None)
        if answer is None or answer.shape[1:] != (len(manifest.labels),) or not manifest.labels:
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected an output probabilities[batch,{len(manifest.labels)}], one column "
                f"for each label, got {', '.join(f'{spec.name}{list(spec.shape)}' for spec in manifest.outputs) or 'none'}; build it again"
            )
        self.endpoints: tuple[Endpoint, ...] = (
            Endpoint("/classify", Files("image", "image/", self.parameters), single("predictions")),
            Endpoint("/classify_batch", Files("images", "image/", self.parameters, many=True), results("predictions"), each_its_own=True),
        )
        self._input = manifest.inputs[0].name
        self._how = how
        self._labels = manifest.labels
        self._limits = profile.limits
        self._decoder = profile.images.decoder

    def parameters(self, fields: Mapping[str, str]) -> Parameters:
        """`top_k`: 1 to the number of classes, 5 where it is not given (or all of them where there are fewer)."""
        refuse_unknown(fields, ("top_k",))
        classes = len(self._labels)
        return Parameters(top_k=whole_number(fields, "top_k", lowest=1, highest=classes, default=min(DEFAULT_TOP_K, classes)))

    def preprocess(self, payload: bytes | memoryview, parameters: Parameters) -> Row:  # noqa: ARG002  the same row whatever they are
        """The picture in `payload` as `{input: uint8[1, height, width, 3]}`. Raises RequestError as `images.load`."""
        return Row({self._input: images.load(payload, self._how, self._limits, decoder=self._decoder)[np.newaxis]})

    def soon(self, payload: bytes | memoryview) -> bool:
        """Whether it is a tiny PNG."""
        return images.tiny(payload, self._how)

    def begin(self, payload: bytes | memoryview, parameters: Parameters) -> Begun | None:  # noqa: ARG002  see above
        """As `preprocess`, of a small JPEG."""
        part = images.small_jpeg(payload, self._how, self._limits) if self._decoder == "exact" else None
        return None if part is None else Begun(part.job, lambda pixels: Row({self._input: part.finished(pixels)[np.newaxis]}))

    def postprocess(self, outputs: Tensors, row: Row, parameters: Parameters) -> list[dict[str, Any]]:  # noqa: ARG002  see above
        """The picture's best classes, as `best_classes`."""
        return best_classes(outputs["probabilities"][0], self._labels, parameters.top_k)
