"""How far two tensors are apart, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ortserve.manifest import Difference


def difference(have: NDArray[Any], want: NDArray[Any], *, scale: float, limit: float) -> Difference:
    """Largest absolute difference over `scale`, and the smallest cosine of any row. NaN and another shape count as infinitely far."""
    if have.shape != want.shape or not np.isfinite(have).all():
        return Difference(max_abs=float("inf"), cosine_min=-1.0, limit=limit, passed=False)
    exact, close = want.astype(np.float64), have.astype(np.float64)
    max_abs = float(np.abs(close - exact).max()) / scale
    lengths = np.linalg.norm(close, axis=1) * np.linalg.norm(exact, axis=1)
    cosine = np.where(lengths > 0, (close * exact).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), float((close == exact).all()))
    return Difference(max_abs=max_abs, cosine_min=float(min(1.0, cosine.min())), limit=limit, passed=max_abs <= limit)
