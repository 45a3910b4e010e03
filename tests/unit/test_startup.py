"""What a start decides: the profile, the resources BentoML is to allocate, and the one execution all workers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve import gpu, startup
from ortserve.errors import ProfileError, ProviderError
from ortserve.profile import Execution, Profile, load

CPU = Execution(provider="CPUExecutionProvider")
CUDA = Execution(provider="CUDAExecutionProvider")


def profile(*executions: Execution) -> Profile:
    return Profile(name="made", description="by a test", execution=executions)


@pytest.mark.parametrize(
    ("gpus", "executions", "expected"),
    [(1, (CUDA, CPU), {"gpu": 1}), (0, (CUDA, CPU), {}), (1, (CPU,), {}), (0, (CUDA,), {}), (2, (CPU, CUDA), {})],
)
def test_a_gpu_is_allocated_where_the_profile_will_run_on_one(
    monkeypatch: pytest.MonkeyPatch, gpus: int, executions: tuple[Execution, ...], expected: dict[str, int]
) -> None:
    monkeypatch.setattr(gpu, "count", lambda: gpus)  # stands for a GPU, which this machine may lack
    assert startup.resources(profile(*executions)) == expected


def test_the_first_execution_that_opens_is_taken_by_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "count", lambda: 1)  # as above
    tried: list[str] = []

    def first_worker(execution: Execution) -> str:
        tried.append(execution.provider)
        if execution is CUDA:
            raise ProviderError("its libraries are missing")
        return "opened"

    def second_worker(execution: Execution) -> str:
        tried.append(execution.provider)
        return "opened too"

    both = profile(CUDA, CPU)
    assert startup.open_agreed(tmp_path, both, first_worker) == "opened"
    assert startup.open_agreed(tmp_path, both, second_worker) == "opened too"
    assert tried == ["CUDAExecutionProvider", "CPUExecutionProvider", "CPUExecutionProvider"]


def test_a_worker_that_cannot_open_what_was_agreed_takes_nothing_else(tmp_path: Path) -> None:
    both = profile(CUDA, CPU)
    (tmp_path / "execution").write_text("0")

    def no_memory(_: Execution) -> str:
        raise ProviderError("no memory left on the device")

    with pytest.raises(ProviderError, match="no memory left"):
        startup.open_agreed(tmp_path, both, no_memory)


def test_where_none_opens_the_last_reason_is_told_and_nothing_agreed(tmp_path: Path) -> None:
    def missing(execution: Execution) -> str:
        raise ProviderError(f"no {execution.provider}")

    with pytest.raises(ProviderError, match="no CPUExecutionProvider"):
        startup.open_agreed(tmp_path, profile(CPU, CPU), missing)
    assert not (tmp_path / "execution").exists()


def test_without_a_gpu_cuda_is_not_even_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "count", lambda: 0)
    with pytest.raises(ProviderError, match="there is no NVIDIA GPU"):
        startup.open_agreed(tmp_path, profile(CUDA), lambda _: pytest.fail("it was tried"))


def test_the_environment_names_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORTSERVE_PROFILE", raising=False)
    assert startup.profile_from_environment() == load("default")
    monkeypatch.setenv("ORTSERVE_PROFILE", "latency")
    assert startup.profile_from_environment() == load("latency")
    monkeypatch.setenv("ORTSERVE_PROFILE", "lateny")
    with pytest.raises(ProfileError, match="expected one of"):
        startup.profile_from_environment()
