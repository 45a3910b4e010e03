"""What a profile's execution becomes for one model on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from ortserve import local_engine, providers
from ortserve.errors import ModelError, ProviderError
from ortserve.execution import Batching, Execution, Provider, Session
from ortserve.local_engine import LocalEngine, _is_brief, fitted, open_session
from ortserve.manifest import Manifest
from ortserve.profile import Profile
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


@pytest.mark.parametrize(
    ("asked", "brief_s", "flights", "threads", "at_once"),
    [("auto", 60.0, 3, 1, 2), ("auto", 60.0, 9, 1, 2), ("auto", 0.0, 3, 3, 3), (3, 60.0, 3, 3, 3), ("auto", 60.0, 2, 3, 2)],
    ids=["brief", "brief, more than CPUs", "long", "told", "a CPU would idle"],
)
def test_a_brief_model_runs_in_one_thread_and_leaves_a_cpu_unless_the_profile_says_how_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Literal["auto"] | int, brief_s: float, flights: int, threads: int, at_once: int
) -> None:
    for module in (providers, local_engine):
        monkeypatch.setattr(module, "available_cpus", lambda: 3)
    monkeypatch.setattr(local_engine, "BRIEF_S", brief_s)
    folder = add_package(tmp_path, "colours:1")
    manifest = Manifest.read(folder)
    batching, session = Batching(max_in_flight=flights), Session(intra_op_num_threads=asked)
    execution = fitted(manifest, Execution(provider="CPUExecutionProvider", batching=batching, session=session))
    opened, under = open_session(folder, manifest, execution, ["probabilities"])
    assert (opened.intra_op_num_threads, under.batching.max_in_flight) == (threads, at_once)


@pytest.mark.parametrize(
    ("brief_s", "asked", "sizes"),
    [(60.0, "auto", (2, 1, 1)), (60.0, 2, (2, 2, 2)), (0.0, "auto", (3, 2, 2))],
    ids=["brief", "told", "long"],
)
def test_a_brief_model_is_batched_as_the_profile_says_of_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief_s: float, asked: Literal["auto"] | int, sizes: tuple[int, int, int]
) -> None:
    for module in (providers, local_engine):
        monkeypatch.setattr(module, "available_cpus", lambda: 2)
    monkeypatch.setattr(local_engine, "BRIEF_S", brief_s)
    folder = add_package(tmp_path, "colours:1", max_batch=3)
    profile = Profile.model_validate(
        {
            "name": "test",
            "description": "a test",
            "execution": [
                {
                    "provider": "CPUExecutionProvider",
                    "session": {"intra_op_num_threads": asked},
                    "batching": {"max_batch_size": 8, "max_in_flight": 2},
                    "brief_batching": {"max_batch_size": 2, "max_in_flight": 9, "max_queue_size": 9},
                }
            ],
        }
    )
    engine = LocalEngine.open(folder, Manifest.read(folder), outputs=["probabilities"], profile=profile, execution=profile.execution[0])
    facts = engine.facts()
    assert (facts["batching"]["max_batch_size"], facts["batching"]["max_in_flight"], facts["session"]["intra_op_num_threads"]) == sizes
    assert facts["batched_by"] == ("brief_batching" if brief_s else "batching")
    assert engine.batching.max_queue_size == (9 if brief_s else 256)


def test_texts_have_every_thread_however_brief_the_shortest_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_engine, "BRIEF_S", 60.0)
    folder = add_package(tmp_path, "colours:1")
    manifest = Manifest.read(folder)
    session, _ = open_session(folder, manifest, fitted(manifest, Execution(provider="CPUExecutionProvider")), ["probabilities"])
    assert _is_brief(session)
    session.ragged = frozenset({"pixels"})  # as those of a text's model, whose rows have any length
    assert not _is_brief(session)


@pytest.mark.parametrize(("provider", "kind"), [("CPUExecutionProvider", ModelError), ("CUDAExecutionProvider", ProviderError)])
def test_a_warm_up_that_fails_ends_the_start_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, kind: type[Exception]
) -> None:
    class Broken:
        """A session whose device has no memory left; of the real one's interface what warming up needs."""

        def __init__(self, inputs: object) -> None:
            self.inputs, self.provider = inputs, provider

        def warm_up(self, *_: object) -> None:
            raise RuntimeError("out\nof memory")

    folder = add_package(tmp_path, "colours:1")
    manifest = Manifest.read(folder)
    monkeypatch.setattr(local_engine.Session, "open", lambda *_, **__: Broken(manifest.inputs))
    with pytest.raises(kind, match=r"colours cannot run batches of \[1, 3\] rows on \w+ \(out of memory\)"):
        open_session(folder, manifest, Execution(provider="CPUExecutionProvider", batching=Batching(max_batch_size=3)), ["probabilities"])
