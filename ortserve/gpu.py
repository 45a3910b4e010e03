"""What NVML says about the GPUs this process may use: how many, how busy, how full. Never an error: no NVML, no readings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast

logger = logging.getLogger(__name__)

Handle = Any  # NVML's opaque device pointer
T = TypeVar("T")


class Nvml(Protocol):
    """The part of the module `pynvml` (package nvidia-ml-py) that is used here."""

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle: ...
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Handle: ...
    def nvmlDeviceGetIndex(self, handle: Handle) -> int: ...
    def nvmlDeviceGetUUID(self, handle: Handle) -> str: ...
    def nvmlDeviceGetName(self, handle: Handle) -> str: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Handle) -> Any: ...
    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> Any: ...


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment. `utilization` is 0 to 1, None where the device does not tell (a MIG slice, some laptops)."""

    index: int
    name: str
    utilization: float | None
    memory_used_bytes: int
    memory_total_bytes: int


def devices(library: Nvml | None = None) -> list[GpuReading]:
    """A reading of every GPU this process may use, in NVML's order; [] where there is none. Takes about a millisecond each."""
    nvml = library or _library(os.getpid())
    if nvml is None:
        return []
    return [reading for handle in _visible(nvml) if (reading := _attempt(lambda: _read(nvml, handle))) is not None]  # noqa: B023


def count(library: Nvml | None = None) -> int:
    """How many GPUs this process may use: those NVML knows, less those CUDA_VISIBLE_DEVICES hides ("" and "-1" hide all)."""
    nvml = library or _library(os.getpid())
    return 0 if nvml is None else len(_visible(nvml))


@lru_cache(maxsize=1)
def _library(pid: int) -> Nvml | None:  # noqa: ARG001  a forked child must initialise NVML anew
    try:
        import pynvml

        nvml = cast(Nvml, pynvml)
        nvml.nvmlInit()
    except Exception as error:
        logger.debug("no GPU readings: NVML cannot be used (%s)", error)
        return None
    return nvml


def _attempt(ask: Callable[[], T]) -> T | None:
    """The answer, or None where NVML refuses: a reading that fails must not fail a scrape."""
    try:
        return ask()
    except Exception as error:
        logger.debug("NVML: %s", error)
        return None


def _read(nvml: Nvml, handle: Handle) -> GpuReading:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    rates = _attempt(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    return GpuReading(
        index=nvml.nvmlDeviceGetIndex(handle),
        name=str(nvml.nvmlDeviceGetName(handle)),
        utilization=None if rates is None else rates.gpu / 100,
        memory_used_bytes=int(memory.used),
        memory_total_bytes=int(memory.total),
    )


def _visible(nvml: Nvml) -> list[Handle]:
    """Handles of the GPUs that CUDA would show, by its rules: entries in order, the first unknown one ends the list.

    An entry is an index, a UUID or its beginning (CUDA C++ Programming Guide, "CUDA Environment Variables"). Indices are taken in
    NVML's order, which is CUDA's under CUDA_DEVICE_ORDER=PCI_BUS_ID and wherever all GPUs are of one kind.
    """
    every = [
        handle
        for index in range(_attempt(nvml.nvmlDeviceGetCount) or 0)
        if (handle := _attempt(lambda: nvml.nvmlDeviceGetHandleByIndex(index))) is not None  # noqa: B023
    ]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return every
    visible: list[Handle] = []
    for entry in (part.strip() for part in wanted.split(",")):
        handle = _find(nvml, every, entry)
        if handle is None:
            break
        visible.append(handle)
    return visible


def _find(nvml: Nvml, every: list[Handle], entry: str) -> Handle | None:
    if entry.isdecimal():
        return every[int(entry)] if int(entry) < len(every) else None
    if entry.startswith("MIG-"):
        return _attempt(lambda: nvml.nvmlDeviceGetHandleByUUID(entry))
    if not entry.startswith("GPU-"):
        return None
    return next((handle for handle in every if str(_attempt(lambda: nvml.nvmlDeviceGetUUID(handle))).startswith(entry)), None)  # noqa: B023
