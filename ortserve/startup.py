"""Before the first worker: which execution of the profile this machine can really run, tried in a child process.

A child, because the parent must hold neither a CUDA context nor the model, and because a worker that fails at start would be
started again for ever. `python -m ortserve.startup FOLDER PROFILE` is the child's side.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ortserve import gpu, profile, tracing
from ortserve.errors import ModelError, ProviderError, StartupError
from ortserve.profile import GPU_PROVIDERS, Execution, Profile

PROFILE_ENV = "ORTSERVE_PROFILE"  # a shipped name or a file; "default" where unset
MODEL_ENV = "ORTSERVE_MODEL"  # a model tag, NAME or NAME:VERSION; "digits" where unset
EXECUTION_ENV = "ORTSERVE_EXECUTION"  # set by the parent for its workers: the index of the execution that was tried and works


@dataclass(frozen=True, slots=True)
class Tried:
    """The execution that works here and why those before it do not."""

    index: int
    provider: str
    precision: str
    skipped: tuple[str, ...]


def profile_from_environment() -> Profile:
    """The profile that ORTSERVE_PROFILE names. Raises ProfileError."""
    return profile.load(os.environ.get(PROFILE_ENV) or "default")


def resources(wanted: Profile) -> dict[str, int]:
    """What BentoML is to allocate: one GPU where the profile's first usable execution runs on one, else nothing."""
    gpus = gpu.count()
    first = next((execution for execution in wanted.execution if gpus or execution.provider not in GPU_PROVIDERS), wanted.execution[0])
    return {"gpu": 1} if gpus and first.provider in GPU_PROVIDERS else {}


def probe(folder: Path, wanted: Profile, reference: str) -> Tried:
    """Open and warm the package in a child process; the execution that works. Raises StartupError with the child's one line."""
    root = str(Path(__file__).resolve().parent.parent)
    child = subprocess.run(
        [sys.executable, "-m", "ortserve.startup", str(folder), reference],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))},
    )
    lines = child.stdout.splitlines()
    if not lines:
        raise StartupError(
            f"the trial start of {wanted.name} ended with status {child.returncode} and said: {_last_line(child.stderr)}: "
            "expected it to load the model; the machine may be out of memory"
        )
    said = json.loads(lines[-1])
    if "error" in said:
        kind = {error.__name__: error for error in (ModelError, ProviderError)}.get(said["kind"], StartupError)
        raise kind(said["error"] + _onnxruntime_reason(child.stderr))
    return Tried(said["index"], said["provider"], said["precision"], tuple(said["skipped"]))


def try_executions(folder: Path, wanted: Profile) -> Tried:
    """The first execution of the profile that opens on its provider and runs. Raises StartupError where none does."""
    from ortserve import tasks
    from ortserve.manifest import Manifest
    from ortserve.model import choose_precision, open_session

    manifest = Manifest.read(folder)
    outputs = tasks.load(manifest, wanted).outputs
    skipped: list[str] = []
    for index, execution in enumerate(wanted.execution):
        try:
            _expect_gpu(execution)
            session = open_session(folder, manifest, execution, outputs)
        except ProviderError as error:
            if index == len(wanted.execution) - 1:
                raise
            skipped.append(str(error))
        else:
            return Tried(index, session.provider, choose_precision(manifest, execution), tuple(skipped))
    raise AssertionError("a profile has at least one execution")


def _expect_gpu(execution: Execution) -> None:
    """ProviderError where a GPU is asked for and NVML sees none: cheaper and clearer than ONNX Runtime's failed attempt."""
    if execution.provider in GPU_PROVIDERS and gpu.count() == 0:
        raise ProviderError(
            f"profile asks for {execution.provider}, but there is no NVIDIA GPU: expected one that NVML can see; "
            "check the driver and CUDA_VISIBLE_DEVICES, or choose a profile with an execution on CPUExecutionProvider"
        )


def chosen_execution(wanted: Profile) -> Execution:
    """The execution the parent tried and chose, in a worker; the first one where there was no parent."""
    return wanted.execution[int(os.environ.get(EXECUTION_ENV, "0"))]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1][:300]


def _onnxruntime_reason(stderr: str) -> str:
    """ONNX Runtime's own reason for a provider it could not load, from what it wrote; empty where it wrote none."""
    found = re.search(r"with error: (.+)", stderr)
    return f" (onnxruntime: {found.group(1).strip()})" if found else ""


def main(folder: str, reference: str) -> int:
    """The child's side: one line of JSON on standard output. Exit status 0 where an execution works, 1 where none does."""
    try:
        wanted = profile.load(reference)
        tried = try_executions(Path(folder), wanted)
        if tracer := tracing.configure(wanted.tracing, service_name="trial", service_version=""):
            tracer.close()
    except StartupError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        return 1
    print(json.dumps({"index": tried.index, "provider": tried.provider, "precision": tried.precision, "skipped": tried.skipped}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
