"""When the requests of the open loop are due."""

from __future__ import annotations

import random
from collections.abc import Callable


def following(due_s: float, rate_per_s: float, level: Callable[[float], float], chance: random.Random) -> tuple[float, bool]:
    """The next moment of the full rate, and whether a request is due then: with the probability `level` of that moment.

    What is left is a Poisson process of `rate_per_s * level`, however fast the level changes (thinning: Lewis and Shedler 1979). A gap
    drawn at the level of its beginning would reach far into what comes after.
    """
    due_s += chance.expovariate(rate_per_s)
    return due_s, chance.random() < level(due_s)
