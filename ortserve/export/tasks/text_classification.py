"""Classifiers of text: random tokens and the user's texts; logits, probabilities and the class that comes first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ortserve.export.tasks import Advance, Probe, Samples
from ortserve.export.tasks.classes import Classes
from ortserve.export.tasks.texts import Tokenise, input_specs, read_texts, text_probes
from ortserve.session import Tensors

# Fewer texts, and one tie decided the other way is more than the limit.
MIN_TEXTS = 200
MIN_CLASSES = 2


class TextClassification(Classes):
    """`ortserve.export.tasks.BuildTask` for ids and mask int64[batch,sequence] -> `logits`, `probabilities` float32[batch,C].

    The limits are those of image classification: what they bound is the same, whatever the classes are of.
    """

    name = "text-classification"
    samples = "texts"
    remedy = "give a --calibration DIR of .txt files, a text in each line, like those you will serve and of several classes"
    int8: Literal["static", "dynamic"] = "dynamic"

    def __init__(self, names: Sequence[str], max_tokens: int, vocabulary: int, classes: int, tokenise: Tokenise) -> None:
        super().__init__(classes)
        self.inputs = input_specs(names)
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
        return self.too_few(answers, samples=MIN_TEXTS, classes=MIN_CLASSES)
