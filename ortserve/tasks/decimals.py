"""Numbers of float32 for JSON."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray


def shortest(values: NDArray[Any]) -> list[float]:
    """Of each float32 in `values[N]` the shortest decimal that means it: 0.1, where float() would say 0.10000000149011612."""
    return cast(list[float], orjson.loads(orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)))
