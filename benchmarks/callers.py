"""Several threads that call the same thing again and again for a while: what every measurement without a server is made of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def hammer(call: Callable[[], Any], callers: int, seconds: float) -> tuple[float, float]:
    """Calls per second of that many threads together, and the median milliseconds of one."""
    took: list[float] = []
    stop_at = time.perf_counter() + seconds

    def loop() -> None:
        while (started := time.perf_counter()) < stop_at:
            call()
            took.append(time.perf_counter() - started)

    threads = [threading.Thread(target=loop) for _ in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(took) / (time.perf_counter() - began), float(np.median(took)) * 1000
