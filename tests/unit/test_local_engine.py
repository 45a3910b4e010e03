"""What a profile's execution becomes for one model on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve import local_engine
from ortserve.manifest import Manifest
from ortserve.profile import Batching, Execution, Provider
from tests.packages import add_package


@pytest.mark.parametrize(
    ("provider", "cpus", "wanted", "flights"),
    [
        ("CPUExecutionProvider", 2, 2, 2),
        ("CPUExecutionProvider", 1, 2, 1),
        ("CPUExecutionProvider", 16, 2, 2),
        ("CUDAExecutionProvider", 1, 2, 2),
    ],
)
def test_no_more_batches_than_cpus_are_in_flight_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider, cpus: int, wanted: int, flights: int
) -> None:
    monkeypatch.setattr(local_engine, "available_cpus", lambda: cpus)
    package = Manifest.read(add_package(tmp_path, "colours:1", max_batch=3))
    execution = Execution(provider=provider, batching=Batching(max_batch_size=8, max_in_flight=wanted))
    batching = local_engine.fitted(package, execution).batching
    assert (batching.max_in_flight, batching.max_batch_size) == (flights, 3)
