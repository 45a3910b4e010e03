"""Classifiers of text: random tokens and the user's texts; logits, probabilities and the class that comes first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ortserve.export.compare import difference
from ortserve.export.options import Options
from ortserve.export.tasks import Advance, Case, Probe, Samples
from ortserve.export.tasks.image_classification import limits_for
from ortserve.export.tasks.texts import Tokenise, input_specs, read_texts, text_probes
from ortserve.manifest import Agreement, Difference, Precision, TensorSpec
from ortserve.session import Tensors

# Fewer texts, and one tie decided the other way is more than the limit.
MIN_TEXTS = 200


class TextClassification:
    """`ortserve.export.tasks.BuildTask` for ids and mask int64[batch,sequence] -> `logits`, `probabilities` float32[batch,C].

    The limits are those of image classification: what they bound is the same, whatever the classes are of.
    """

    name = "text-classification"
    samples = "texts"
    measure = "top-1 agreement"
    remedy = "give a --calibration DIR of .txt files, a text in each line, like those you will serve and of several classes"
    int8: Literal["static", "dynamic"] = "dynamic"

    def __init__(self, names: Sequence[str], max_tokens: int, vocabulary: int, classes: int, tokenise: Tokenise) -> None:
        self.inputs = input_specs(names)
        self.outputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", classes)) for name in ("logits", "probabilities"))
        self._names = tuple(names)
        self._max_tokens = max_tokens
        self._vocabulary = vocabulary
        self._tokenise = tokenise

    def probes(self, max_batch: int) -> list[Probe]:
        """Random tokens, as `texts.text_probes`."""
        return text_probes(self._names, self._max_tokens, self._vocabulary, max_batch)

    def read_samples(self, folder: Path, advance: Advance) -> Samples:
        """The folder's texts. Raises CalibrationError."""
        return read_texts(folder, self._tokenise, advance)

    def unmeasurable(self, answers: Tensors) -> str | None:
        """Too few texts, or all of one class."""
        top1 = answers["probabilities"].argmax(axis=1)
        texts, classes = len(top1), len(np.unique(top1))
        if texts >= MIN_TEXTS and classes >= 2:
            return None
        return f"{texts} texts in {classes} classes; needs {MIN_TEXTS} and 2"

    def compare(self, case: Case, have: Tensors, precision: Precision, options: Options) -> dict[str, Difference]:
        """Logits relative to their range on the case, probabilities absolute."""
        limits = limits_for(precision, options)
        near = case.inputs == self.samples
        want = {name: tensor[: len(have["logits"])] for name, tensor in case.answers.items()}
        scale = float(np.ptp(case.answers["logits"])) or 1.0
        bounds = (limits.logits, limits.probabilities) if near else (limits.logits_far, limits.probabilities_far)
        return {
            name: difference(have[name], want[name], scale=by, limit=limit)
            for name, by, limit in zip(("logits", "probabilities"), (scale, 1.0), bounds, strict=True)
        }

    def agreement(self, have: Tensors, want: Tensors, precision: Precision, options: Options, note: str) -> Agreement:
        """The share of texts whose first class is the reference's."""
        limit = self.agreement_limit(precision, options)
        same = have["probabilities"].argmax(axis=1) == want["probabilities"].argmax(axis=1)
        value = float(same.mean())
        return Agreement(measure=self.measure, value=value, limit=limit, samples=len(same), passed=value >= limit, note=note)

    def agreement_limit(self, precision: Precision, options: Options) -> float:
        """The least top-1 agreement that passes."""
        return limits_for(precision, options).agreement
