"""Image feature extraction: one picture's bytes to one vector, for search and for finding pictures that are alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ortserve import images
from ortserve.errors import InferenceError, ModelError
from ortserve.tasks.endpoint import Endpoint, Files, results, single
from ortserve.tasks.parameters import refuse_unknown
from ortserve.tasks.row import Row

if TYPE_CHECKING:
    from ortserve.manifest import Manifest
    from ortserve.profile import Profile
    from ortserve.session import Tensors


class ImageFeatureExtraction:
    """`ortserve.tasks.Task` for a model of one picture input and one output `embedding`."""

    outputs: tuple[str, ...] = ("embedding",)
    payloads_per_job = 1

    def __init__(self, manifest: Manifest, folder: Path, profile: Profile) -> None:  # noqa: ARG002  all it needs is in the manifest
        """Raises ModelError where the manifest does not say how pictures are prepared."""
        if manifest.preprocessing is None:
            raise ModelError(
                f"model {manifest.name} is for {manifest.task}: expected how pictures are prepared in its manifest; build it again"
            )
        self.endpoints: tuple[Endpoint, ...] = (
            Endpoint("/embed_image", Files("image", "image/", self.parameters), single("embedding")),
            Endpoint("/embed_image_batch", Files("images", "image/", self.parameters, many=True), results("embedding"), each_its_own=True),
        )
        self._how = manifest.preprocessing
        self._limits = profile.limits
        self._decoder = profile.images.decoder

    def parameters(self, fields: Mapping[str, str]) -> None:
        """There are none."""
        refuse_unknown(fields, ())

    def preprocess(self, payload: bytes | memoryview, parameters: None) -> Row:  # noqa: ARG002
        """The picture as `{"pixels": uint8[1, height, width, 3]}`. Raises RequestError as `images.load`."""
        return Row({"pixels": images.load(payload, self._how, self._limits, decoder=self._decoder)[np.newaxis]})

    def postprocess(self, outputs: Tensors, row: Row, parameters: None) -> NDArray[np.float32]:  # noqa: ARG002
        """The picture's embedding, float32[dimension]. Raises InferenceError where a component is not a number."""
        embedding: NDArray[np.float32] = outputs["embedding"][0]
        if not np.isfinite(embedding).all():
            raise InferenceError("the model answered this picture with an embedding that is no numbers: send another picture")
        return embedding
