"""Scores of classes to the best of them, for every task that answers classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.errors import InferenceError

DEFAULT_TOP_K = 5
_FEW = 1000  # so many are sorted as a whole as fast as the best of them are found, 10 in a quarter of the time


def best_classes(scores: NDArray[Any], labels: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    """`[{"class_id", "label", "score"}]` of `scores[C]`, best first, ties by class id; scores are probabilities, 0..1.

    Raises InferenceError where a score is not a number: JSON has no word for it and a caller no use.
    """
    if not np.isfinite(scores).all():
        raise InferenceError("the model answered this input with scores that are no numbers: send another one")
    # str() of a float32 is the shortest decimal that means the same float32: 0.1, where float() would say 0.10000000149011612.
    return [{"class_id": index, "label": labels[index], "score": float(str(scores[index]))} for index in top(scores, top_k).tolist()]


def top(scores: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Indices of the `k` largest of `scores[C]`, largest first, equals by index. O(C + k log k)."""
    k = min(k, len(scores))
    if len(scores) <= _FEW:
        return np.argsort(-scores, kind="stable")[:k]
    # A partition alone picks any of the equals at the border; the smallest index is to win.
    border = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > border)
    chosen = np.concatenate([above, np.flatnonzero(scores == border)[: k - len(above)]])
    chosen.sort()
    return chosen[np.argsort(-scores[chosen], kind="stable")]
