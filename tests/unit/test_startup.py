"""What a start decides: the profile, the resources BentoML is to allocate, and the one execution all workers share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ortserve import gpu, startup
from ortserve.errors import ModelError, ProfileError, ProviderError
from ortserve.execution import Execution
from ortserve.profile import Profile
from ortserve.profile_file import load

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


@pytest.mark.parametrize(
    "several",
    [
        {"execution": [{"provider": "CUDAExecutionProvider", "device_ids": [0, 1]}]},
        {
            "models": [
                {"model": "a"},
                {"model": "b", "execution": [{"provider": "CUDAExecutionProvider", "provider_options": {"device_id": 1}}]},
            ]
        },
        {"placement": "separate", "models": [{"model": "a", "runner": "gpu0"}, {"model": "b", "runner": "gpu1"}]},
    ],
    ids=["device_ids", "device_id", "runners"],
)
def test_no_gpu_is_hidden_from_a_profile_that_chooses_among_them(monkeypatch: pytest.MonkeyPatch, several: dict[str, Any]) -> None:
    monkeypatch.setattr(gpu, "count", lambda: 2)  # stands for two GPUs
    assert (
        startup.resources(Profile.model_validate({"description": "x", "execution": [{"provider": "CUDAExecutionProvider"}], **several}))
        == {}
    )


def test_each_worker_has_the_next_device_and_one_that_is_started_for_a_dead_one_has_its(tmp_path: Path) -> None:
    two = CUDA.model_copy(update={"device_ids": (3, 5)})
    code = (
        "import sys, pathlib\nfrom ortserve import startup\n"
        "print(startup.place_among_workers(pathlib.Path(sys.argv[1]), 'x'), flush=True)\nsys.stdin.read()\n"
    )

    def worker() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def place(of: subprocess.Popen[str]) -> int:
        assert of.stdout is not None
        return int(of.stdout.readline())

    first, second, third = (worker() for _ in range(3))
    with first, second, third:
        assert sorted([place(first), place(second), place(third)]) == [0, 1, 2]
        second.kill()
        second.wait()
        with worker() as fourth:
            died = place(fourth)
            assert startup.place_among_workers(tmp_path, "x") == 3
            assert startup.place_among_workers(tmp_path, "y") == 0
            for process in (first, third, fourth):
                process.kill()
    assert died in (0, 1, 2)
    assert [startup.on_own_device(two, place).provider_options["device_id"] for place in (0, 1, 2)] == [3, 5, 3]
    assert startup.on_own_device(CUDA, 1) is CUDA


@pytest.mark.parametrize(
    ("named", "of_the_profile", "expected"),
    [
        ("", [], ("digits",)),
        ("", ["a:1", "b"], ("a:1", "b")),
        ("c", ["a:1", "b"], ("c",)),
        (" a:2 , c,", ["a:1", "b"], ("a:2", "c")),
    ],
)
def test_the_environment_chooses_the_models_before_the_profile(
    monkeypatch: pytest.MonkeyPatch, named: str, of_the_profile: list[str], expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ORTSERVE_MODEL", named)
    models = [{"model": tag} for tag in of_the_profile]
    wanted = Profile.model_validate({"description": "x", "execution": [{"provider": "CPUExecutionProvider"}], "models": models})
    assert startup.wanted_tags(wanted) == expected


def test_two_versions_of_a_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORTSERVE_MODEL", "a:1,b,a:2")
    with pytest.raises(ModelError, match="names a twice"):
        startup.wanted_tags(profile(CPU))


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
    assert startup.open_agreed(tmp_path, both, "x", first_worker) == "opened"
    assert startup.open_agreed(tmp_path, both, "x", second_worker) == "opened too"
    assert tried == ["CUDAExecutionProvider", "CPUExecutionProvider", "CPUExecutionProvider"]


def test_a_worker_that_cannot_open_what_was_agreed_takes_nothing_else(tmp_path: Path) -> None:
    both = profile(CUDA, CPU)
    (tmp_path / "execution.x").write_text("0")

    def no_memory(_: Execution) -> str:
        raise ProviderError("no memory left on the device")

    with pytest.raises(ProviderError, match="no memory left"):
        startup.open_agreed(tmp_path, both, "x", no_memory)


def test_where_none_opens_the_last_reason_is_told_and_nothing_agreed(tmp_path: Path) -> None:
    def missing(execution: Execution) -> str:
        raise ProviderError(f"no {execution.provider}")

    with pytest.raises(ProviderError, match="no CPUExecutionProvider"):
        startup.open_agreed(tmp_path, profile(CPU, CPU), "x", missing)
    assert not (tmp_path / "execution.x").exists()


def test_without_a_gpu_cuda_is_not_even_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "count", lambda: 0)
    with pytest.raises(ProviderError, match="there is no NVIDIA GPU"):
        startup.open_agreed(tmp_path, profile(CUDA), "x", lambda _: pytest.fail("it was tried"))


def test_the_environment_names_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORTSERVE_PROFILE", raising=False)
    assert startup.profile_from_environment() == load("default")
    monkeypatch.setenv("ORTSERVE_PROFILE", "latency")
    assert startup.profile_from_environment() == load("latency")
    monkeypatch.setenv("ORTSERVE_PROFILE", "lateny")
    with pytest.raises(ProfileError, match="expected one of"):
        startup.profile_from_environment()
