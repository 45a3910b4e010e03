"""Scores of classes to the best of them, for every task that answers classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.errors import InferenceError
from ortserve.tasks.decimals import shortest

DEFAULT_TOP_K = 5
_FEW = 100  # so many are sorted as a whole sooner than the best of them are found


def best_classes(scores: NDArray[Any], labels: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    """`[{"class_id", "label", "score"}]` of `scores[C]`, best first, ties by class id; scores are probabilities, 0..1.

    Raises InferenceError where a score is not a number: JSON has no word for it and a caller no use.
    """
    if not np.isfinite(scores).all():
        raise InferenceError("the model answered this input with scores that are no numbers: send another one")
    best = top(scores, top_k)
    decimals = shortest(scores[best])
    return [{"class_id": index, "label": labels[index], "score": score} for index, score in zip(best.tolist(), decimals, strict=True)]


def top(scores: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Indices of the `k` largest of `scores[C]`, largest first, equals by index."""
    k = min(k, len(scores))
    if len(scores) <= _FEW:
        return np.argsort(-scores, kind="stable")[:k]
    border = np.partition(scores, len(scores) - k)[len(scores) - k]
    chosen = np.flatnonzero(scores >= border)  # with all the equals at the border, of which the smallest index is to win
    return chosen[np.argsort(-scores[chosen], kind="stable")[:k]]
