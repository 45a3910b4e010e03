"""How much of the load is there at which moment: a share of the most users, or of the highest rate."""

from __future__ import annotations

from typing import Protocol

RAMP_STAYS = 0.25  # of its length, once everything is there: long enough to see whether it holds


class Settings(Protocol):
    """The options that a level depends on."""

    shape: str
    ramp_s: float
    spike_base: float
    spike_after_s: float
    spike_s: float


def level(options: Settings, elapsed_s: float) -> float:
    """The share of the load, 0 to 1, so many seconds after the start."""
    if options.shape == "ramp":
        return min(1.0, max(0.0, elapsed_s / options.ramp_s)) if options.ramp_s > 0 else 1.0
    if options.shape == "spike":
        in_spike = options.spike_after_s <= elapsed_s < options.spike_after_s + options.spike_s
        return 1.0 if in_spike else min(1.0, max(0.0, options.spike_base))
    return 1.0


def length_s(options: Settings) -> float | None:
    """How long the shape takes by itself; None of one without an end."""
    return {"ramp": options.ramp_s * (1 + RAMP_STAYS), "spike": 2 * options.spike_after_s + options.spike_s}.get(options.shape)
