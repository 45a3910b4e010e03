"""What a start reads from the environment, and the one execution of the profile that all workers of a start share."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ortserve import gpu, profile
from ortserve.errors import ProviderError
from ortserve.profile import GPU_PROVIDERS, Execution, Profile

logger = logging.getLogger("ortserve.startup")

Opened = TypeVar("Opened")

PROFILE_ENV = "ORTSERVE_PROFILE"  # a shipped name or a file; "default" where unset
MODEL_ENV = "ORTSERVE_MODEL"  # a model tag, NAME or NAME:VERSION; "digits" where unset


def profile_from_environment() -> Profile:
    """The profile that ORTSERVE_PROFILE names. Raises ProfileError."""
    return profile.load(os.environ.get(PROFILE_ENV) or "default")


def resources(wanted: Profile) -> dict[str, int]:
    """What BentoML is to allocate: one GPU where the profile's first usable execution runs on one, else nothing."""
    gpus = gpu.count()
    first = next((execution for execution in wanted.execution if gpus or execution.provider not in GPU_PROVIDERS), wanted.execution[0])
    return {"gpu": 1} if gpus and first.provider in GPU_PROVIDERS else {}


def open_agreed(folder: Path, wanted: Profile, open_model: Callable[[Execution], Opened]) -> Opened:
    """The model on the execution that every worker of this start uses: the first worker tries them in order, the others take its choice.

    `folder` is the start's run folder. Raises StartupError where none works, or where the one that was chosen does not work here.
    """
    chosen = folder / "execution"
    with (folder / "execution.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not chosen.exists():
            index, opened = _first(wanted, open_model)
            chosen.write_text(str(index), encoding="ascii")
            return opened
    return open_model(wanted.execution[int(chosen.read_text(encoding="ascii"))])


def _first(wanted: Profile, open_model: Callable[[Execution], Opened]) -> tuple[int, Opened]:
    for index, execution in enumerate(wanted.execution):
        try:
            _expect_gpu(execution)
            return index, open_model(execution)
        except ProviderError as error:
            if index == len(wanted.execution) - 1:
                raise
            logger.info("next execution of profile %s: %s", wanted.name, error)
    raise AssertionError("a profile has at least one execution")


def _expect_gpu(execution: Execution) -> None:
    """ProviderError where a GPU is asked for and NVML sees none: cheaper and clearer than ONNX Runtime's failed attempt."""
    if execution.provider in GPU_PROVIDERS and gpu.count() == 0:
        raise ProviderError(
            f"profile asks for {execution.provider}, but there is no NVIDIA GPU: expected one that NVML can see; "
            "check the driver and CUDA_VISIBLE_DEVICES, or choose a profile with an execution on CPUExecutionProvider"
        )
