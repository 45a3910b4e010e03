"""GPU readings, against a fake of NVML: the calls of `pynvml` that are used, for made-up devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from ortserve import gpu


class NvmlRefusal(Exception):
    """Stands for pynvml.NVMLError."""


@dataclass
class FakeNvml:
    """Stands for the module `pynvml`. A handle is the device's index; `broken` names the calls that fail."""

    uuids: tuple[str, ...] = ("GPU-aaaa-1", "GPU-bbbb-2")
    broken: frozenset[str] = field(default_factory=frozenset)

    def _check(self, call: str) -> None:
        if call in self.broken:
            raise NvmlRefusal(call)

    def nvmlInit(self) -> None:
        self._check("init")

    def nvmlDeviceGetCount(self) -> int:
        self._check("count")
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._check("handle")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid != "MIG-cccc-3":
            raise NvmlRefusal("not found")
        return 7

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.uuids[handle]

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"Fake {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        self._check("memory")
        return SimpleNamespace(used=1000 + handle, total=4000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        self._check("utilization")
        return SimpleNamespace(gpu=25 * (handle + 1))


@pytest.fixture(autouse=True)
def _no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_readings_are_ratios_and_bytes() -> None:
    assert gpu.devices(FakeNvml()) == [
        gpu.GpuReading(0, "Fake 0", 0.25, 1000, 4000),
        gpu.GpuReading(1, "Fake 1", 0.5, 1001, 4000),
    ]


@pytest.mark.parametrize(
    ("mask", "indices"),
    [
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("1,0", [1, 0]),
        ("0,9,1", [0]),  # CUDA stops at the first entry it does not know
        ("GPU-bbbb", [1]),
        ("MIG-cccc-3", [7]),
        ("MIG-nope", []),
        (" 1 ", [1]),
        ("NoDevFiles", []),
    ],
)
def test_the_mask_hides_as_cuda_does(monkeypatch: pytest.MonkeyPatch, mask: str, indices: list[int]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert [reading.index for reading in gpu.devices(FakeNvml())] == indices
    assert gpu.count(FakeNvml()) == len(indices)


def test_a_device_that_does_not_tell_its_utilisation_is_still_read() -> None:
    readings = gpu.devices(FakeNvml(broken=frozenset({"utilization"})))
    assert [reading.utilization for reading in readings] == [None, None]


@pytest.mark.parametrize("call", ["count", "handle", "memory"])
def test_a_failing_call_is_no_error(call: str) -> None:
    assert gpu.devices(FakeNvml(broken=frozenset({call}))) == []


def test_no_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_library", lambda _: None)
    assert gpu.devices() == []
    assert gpu.count() == 0


def test_the_real_library_has_every_call_that_is_used() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert all(callable(getattr(pynvml, name)) for name in vars(gpu.Nvml) if name.startswith("nvml"))


def test_the_real_library_never_raises() -> None:
    assert len(gpu.devices()) <= gpu.count()
