"""CUDA's libraries, against folders and libraries made for the test."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortserve import cudart


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened, by its path. By its bare name nothing is found, and what is called `broken` is not opened."""
    seen: list[str] = []

    def cdll(name: str) -> None:
        if "/" not in name or "broken" in name:
            raise OSError(f"{name}: cannot open shared object file")
        seen.append(name)

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    return seen


def test_wheels_are_found_in_every_folder_of_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]) -> None:
    wanted = ["broken/nvidia/cu13/lib/libcudart.so.13", "torch/nvidia/cu13/lib/libcudart.so.13"]
    wanted += ["torch/nvidia/cudnn/lib/libcudnn.so.9", "site/nvidia/cu13/lib/libcurand.so.10"]
    for name in wanted:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    class Found:
        submodule_search_locations = tuple(str(tmp_path / folder / "nvidia") for folder in ("broken", "torch", "site"))

    monkeypatch.setattr(cudart, "find_spec", lambda _: Found())
    cudart.load_wheels()
    assert [Path(name).relative_to(tmp_path).as_posix() for name in opened] == [wanted[3], wanted[1], wanted[2]]


def test_without_wheels_the_loader_is_left_to_find_them(monkeypatch: pytest.MonkeyPatch, opened: list[str]) -> None:
    monkeypatch.setattr(cudart, "find_spec", lambda _: None)
    cudart.load_wheels()
    assert opened == []
    assert "nvidia-curand (libcurand.so.10)" in cudart.missing_libraries()


def test_without_cudas_library_nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudart, "_library", lambda: None)
    assert cudart.pin(np.zeros(4)) is False
    cudart.use_device(1)


def test_pinned_memory_is_given_back_before_it_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        def __init__(self) -> None:
            self.registered: set[int] = set()

        def cudaHostRegister(self, address: Any, size: Any, flags: Any) -> int:
            assert (size.value, flags.value) == (4096, 1)
            self.registered.add(address.value)
            return 0

        def cudaHostUnregister(self, address: Any) -> int:
            self.registered.remove(address.value)
            return 0

    runtime = Runtime()
    monkeypatch.setattr(cudart, "_library", lambda: runtime)
    buffer = np.zeros(4096, np.uint8)
    assert cudart.pin(buffer) is True
    assert runtime.registered == {buffer.ctypes.data}
    del buffer
    gc.collect()
    assert runtime.registered == set()
