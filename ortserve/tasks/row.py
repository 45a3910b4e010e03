"""What a payload becomes before it is queued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from ortserve.jpeg import Job
    from ortserve.session import Tensors


@dataclass(frozen=True, slots=True)
class Row:
    """One payload as the session takes it."""

    tensors: Tensors  # `{name: [1, ...]}`, every input of the session
    context: Any = None  # what `postprocess` needs to know of the payload


@dataclass(frozen=True, slots=True)
class Begun:
    """A picture whose pixels `job` gives, and the row they make."""

    job: Job
    row: Callable[[NDArray[np.uint8]], Row]
