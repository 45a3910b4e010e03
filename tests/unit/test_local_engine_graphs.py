"""`cuda_graphs` of an execution, against a package: what is tried, what happens where the model cannot be captured, and for texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ortserve import local_engine
from ortserve.errors import GraphRefused
from ortserve.execution import Execution
from ortserve.local_engine import fitted, open_session
from ortserve.manifest import Manifest, TensorSpec
from ortserve.session import Session
from tests.packages import add_package


def execution(graphs: str) -> Execution:
    batching = {"max_batch_size": 4, "buckets": [1, 2, 4]}
    return Execution.model_validate({"provider": "CUDAExecutionProvider", "cuda_graphs": graphs, "batching": batching})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return add_package(tmp_path / "home", "colours:1", max_batch=3)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `cuda_graphs` each session was opened with; every one that has graphs is refused, as late as it can be: while warming up."""
    seen: list[str] = []
    cpu = Execution(provider="CPUExecutionProvider")

    def opened(path: Path, wanted: Execution, *, outputs: Any = None) -> Session:
        seen.append(wanted.cuda_graphs)
        session = Session.open(path, cpu, outputs=outputs)
        if wanted.cuda_graphs != "off":

            def refuse(*_: Any) -> None:
                raise GraphRefused("its CUDA graph for a batch of 2 cannot be captured (no): set cuda_graphs: off")

            monkeypatch.setattr(session, "warm_up", refuse)
        return session

    class Opens:
        open = staticmethod(opened)

    monkeypatch.setattr(local_engine, "Session", Opens)
    return seen


def test_auto_runs_without_where_the_model_cannot_be_captured_and_says_so(
    package: Path, tried: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    session, _ = open_session(package, Manifest.read(package), execution("auto"), ["probabilities"])
    assert tried == ["auto", "off"]
    assert session.cuda_graphs == 0
    assert "model colours runs without CUDA graphs: its CUDA graph for a batch of 2 cannot be captured" in caplog.text


def test_required_does_not_start_without(package: Path, tried: list[str]) -> None:
    with pytest.raises(GraphRefused, match=r"model colours: its CUDA graph for a batch of 2 .*set cuda_graphs: off"):
        open_session(package, Manifest.read(package), execution("required"), ["probabilities"])
    assert tried == ["required"]


def test_buckets_are_cut_to_what_was_verified_and_keep_their_graphs(package: Path) -> None:
    made = fitted(Manifest.read(package), execution("auto"))
    assert made.batching.buckets == (1, 2, 3)
    assert made.cuda_graphs == "auto"


def test_texts_have_no_graphs(package: Path) -> None:
    tokens = TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"))
    texts = Manifest.read(package).model_copy(update={"inputs": (tokens,)})
    assert fitted(texts, execution("required")).cuda_graphs == "off"
