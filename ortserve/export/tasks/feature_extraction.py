"""Embedders of text: random tokens and real sentences; the embeddings themselves, and the order of their similarities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ortserve.export.compare import difference
from ortserve.export.limits import least_agreement, tolerance
from ortserve.export.options import Options
from ortserve.export.tasks import Advance, Case, Probe, Samples
from ortserve.export.tasks.texts import Tokenise, input_specs, read_texts, text_probes
from ortserve.manifest import Agreement, Difference, Precision, TensorSpec
from ortserve.session import Tensors

# Fewer texts, and the order of their similarities says little: 40 texts have 780 of them.
MIN_TEXTS = 40
SENTENCES = Path(__file__).with_name("sentences.txt")


@dataclass(frozen=True)
class Limits:
    """What one precision may differ by: components of the embedding over its length, on texts and `far` from them; Spearman's rho."""

    embedding: float
    embedding_far: float  # on random tokens
    order: float


# fp32: only the order of additions differs; measured 3e-7 on all-MiniLM-L6-v2.
# fp16: measured 4e-4 there.
# int8: weights have 7 bits, activations 8, with one range for all rows of a batch: measured 0.053 and 0.029. A component
#   may move that far and the embedding still point the same way; what holds int8 is the order of the similarities.
_LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(embedding=1e-4, embedding_far=1e-4, order=0.999),
    "fp16": Limits(embedding=2e-2, embedding_far=2e-2, order=0.995),
    "int8": Limits(embedding=0.15, embedding_far=0.3, order=0.98),
}


class FeatureExtraction:
    """`ortserve.export.tasks.BuildTask` for token ids and mask int64[batch,sequence] -> `embedding` float32[batch,dimension]."""

    name = "feature-extraction"
    samples = "texts"
    measure = "Spearman of similarities"
    remedy = "give a --calibration DIR of .txt files, a text in each line, like those you will serve"
    int8: Literal["static", "dynamic"] = "dynamic"

    def __init__(self, names: Sequence[str], max_tokens: int, vocabulary: int, dimension: int, tokenise: Tokenise) -> None:
        self.inputs = input_specs(names)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec(name="embedding", dtype="float32", shape=("batch", dimension)),)
        self._names = tuple(names)
        self._max_tokens = max_tokens
        self._vocabulary = vocabulary
        self._tokenise = tokenise

    def probes(self, max_batch: int) -> list[Probe]:
        """Random tokens, as `texts.text_probes`."""
        return text_probes(self._names, self._max_tokens, self._vocabulary, max_batch)

    def own_samples(self) -> Samples:
        """The sentences that come with the project: short and long, near each other and far."""
        lines = SENTENCES.read_text(encoding="utf-8").splitlines()
        return Samples({}, self._tokenise(lines), f"{len(lines)} sentences of {SENTENCES.name}")

    def read_samples(self, folder: Path, advance: Advance) -> Samples:
        """The folder's texts. Raises CalibrationError."""
        return read_texts(folder, self._tokenise, advance)

    def unmeasurable(self, answers: Tensors) -> str | None:
        """Too few texts."""
        texts = len(answers["embedding"])
        return None if texts >= MIN_TEXTS else f"{texts} texts; needs {MIN_TEXTS}"

    def compare(self, case: Case, have: Tensors, precision: Precision, options: Options) -> dict[str, Difference]:
        """Components relative to the longest embedding of the case: 1 where they are normalised."""
        limits = _limits_for(precision, options)
        want = case.answers["embedding"][: len(have["embedding"])]
        scale = float(np.linalg.norm(case.answers["embedding"], axis=1).max()) or 1.0
        limit = limits.embedding if case.inputs == self.samples else limits.embedding_far
        return {"embedding": difference(have["embedding"], want, scale=scale, limit=limit)}

    def agreement(self, have: Tensors, want: Tensors, precision: Precision, options: Options, note: str) -> Agreement:
        """Spearman's rho of the cosine similarities of all pairs of texts: whether a search would list them in the same order."""
        limit = self.agreement_limit(precision, options)
        value = spearman(similarities(have["embedding"]), similarities(want["embedding"]))
        return Agreement(measure=self.measure, value=value, limit=limit, samples=len(want["embedding"]), passed=value >= limit, note=note)

    def agreement_limit(self, precision: Precision, options: Options) -> float:
        """The least rho that passes."""
        return _limits_for(precision, options).order


def similarities(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine similarity of every pair of rows."""
    exact = embeddings.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    above: NDArray[np.float64] = (exact @ exact.T)[np.triu_indices(len(exact), 1)]
    return above


def spearman(have: NDArray[np.float64], want: NDArray[np.float64]) -> float:
    """Spearman's rank correlation of two lists without ties, -1 to 1."""
    ranks = [np.argsort(np.argsort(values)) for values in (have, want)]
    return float(np.corrcoef(*ranks)[0, 1])


def _limits_for(precision: Precision, options: Options) -> Limits:
    default = _LIMITS[precision]
    order = least_agreement(precision, options, default.order)
    if precision == "fp32":
        largest = tolerance(options, default.embedding)
        return Limits(largest, largest, order)
    return Limits(default.embedding, default.embedding_far, order)
