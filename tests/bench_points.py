"""Points of a bench as its state has them."""

from __future__ import annotations

from typing import Any


def point(session: str, load: str, **figures: Any) -> dict[str, Any]:
    """As the state has it."""
    return {"session": session, "load": load, **figures}


def closed(turn: int, system: str, rate: float, load: str = "closed 8", case: str = "resnet50", **more: Any) -> dict[str, Any]:
    """A point of a closed loop."""
    return point(f"{turn}/{case}/{system}/closed", load, requests_per_s=rate, failed=0, **more)
