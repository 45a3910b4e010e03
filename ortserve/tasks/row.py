"""What a payload becomes before it is queued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ortserve.session import Tensors


@dataclass(frozen=True, slots=True)
class Row:
    """One payload as the session takes it."""

    tensors: Tensors  # `{name: [1, ...]}`, every input of the session
    context: Any = None  # what `postprocess` needs to know of the payload
