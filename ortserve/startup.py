"""What a start reads from the environment, and the one execution of the profile that all workers of a start share."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ortserve import gpu, profile_file
from ortserve.errors import ModelError, ProviderError, StartupError
from ortserve.execution import GPU_PROVIDERS, Execution
from ortserve.profile import Profile

logger = logging.getLogger("ortserve.startup")

Opened = TypeVar("Opened")

PROFILE_ENV = "ORTSERVE_PROFILE"  # a shipped name or a file; "default" where unset
MODEL_ENV = "ORTSERVE_MODEL"  # model tags, NAME or NAME:VERSION, with commas between; where unset the profile's models, or "digits"
DEFAULT_MODEL = "digits"


@contextlib.contextmanager
def exit_with_one_line() -> Iterator[None]:
    """Turn a StartupError into one line on standard error and exit status 1."""
    try:
        yield
    except StartupError as error:
        raise SystemExit(f"error: {error}") from None


def profile_from_environment() -> Profile:
    """The profile that ORTSERVE_PROFILE names. Raises ProfileError."""
    return profile_file.load(os.environ.get(PROFILE_ENV) or "default")


def wanted_tags(wanted: Profile) -> tuple[str, ...]:
    """The tags of the models to serve: ORTSERVE_MODEL's, else the profile's, else that of the default model. Raises ModelError."""
    named = tuple(tag.strip() for tag in os.environ.get(MODEL_ENV, "").split(",") if tag.strip())
    tags = named or tuple(served.model for served in wanted.models) or (DEFAULT_MODEL,)
    names = [tag.partition(":")[0] for tag in tags]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ModelError(f"{MODEL_ENV} names {twice} twice: requests choose a model by its name, so one version of each can be served")
    return tags


def resources(wanted: Profile) -> dict[str, int]:
    """What BentoML is to allocate: one GPU where the profile's first usable execution runs on one, else nothing.

    Nothing also where the profile chooses among several: BentoML would hide those from a process that it did not allocate to it.
    """
    gpus = gpu.count()
    first = next((execution for execution in wanted.execution if gpus or execution.provider not in GPU_PROVIDERS), wanted.execution[0])
    ways = [*wanted.execution, *(execution for served in wanted.models for execution in served.execution)]
    chooses = any(execution.device_ids or execution.provider_options.get("device_id") for execution in ways)
    several_runners = len({served.runner for served in wanted.models}) > 1
    return {"gpu": 1} if gpus and first.provider in GPU_PROVIDERS and not chooses and not several_runners else {}


def place_among_workers(folder: Path, service: str) -> int:
    """This process's place among the living workers of that service, from 0 on: the lowest that none of them has.

    It is held by a lock on a file of the run folder for as long as the process lives, so a worker started for a dead one takes its place.
    """
    for place in itertools.count():
        file = os.open(folder / f"place.{service}.{place}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)  # open as long as this process lives
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        return place
    raise AssertionError("there is always a next place")


def on_own_device(execution: Execution, place: int) -> Execution:
    """The execution on the device of the worker in that place, where it has several to choose from."""
    if not execution.device_ids:
        return execution
    device = execution.device_ids[place % len(execution.device_ids)]
    return execution.model_copy(update={"device_ids": (), "provider_options": {**execution.provider_options, "device_id": device}})


def open_agreed(folder: Path, wanted: Profile, model: str, open_model: Callable[[Execution], Opened]) -> Opened:
    """The model on the execution that every worker of this start uses: the first worker tries them in order, the others take its choice.

    `folder` is the start's run folder. Raises StartupError where none works, or where the one that was chosen does not work here.
    """
    chosen = folder / f"execution.{model}"
    with (folder / f"execution.{model}.lock").open("w") as lock:
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
