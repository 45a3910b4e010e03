"""Which devices the tests find on this machine."""

from __future__ import annotations

from functools import cache

import pynvml


@cache
def why_no_gpu() -> str | None:
    """Why GPU tests cannot run here, or None where they can."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"no NVIDIA driver answers: {error}"
    return None if count else "the NVIDIA driver knows no GPU"
