"""A session of the bench and its memory: what is measured beside a load, and that an interrupted run measures nothing twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import client, measure
from benchmarks.bare import alone
from benchmarks.benches import complete, quick, smallest
from benchmarks.figures import Figures
from benchmarks.plan import TURNS_SHARE, Load, Session
from benchmarks.process import DidNotStart
from benchmarks.state import State
from benchmarks.systems import BY_NAME

SETTINGS = {"plan": "bench", "seconds": 2.0}


def test_bare_runs_are_compared_once_and_the_best_two_measured_in_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def run_json(_: str, *arguments: object) -> list[dict[str, Any]]:
        words = tuple(map(str, arguments))
        asked.append((Path(words[0]).stem, *words[1:]))
        chosen = json.loads(words[words.index("--only") + 1]) if "--only" in words else None
        one = {"threads": 2, "callers": 1, "spinning": False, "decoding": False, "p50_ms": 1.0}
        rates = {1: 20.0, 4: 30.0, 8: 25.0}
        setups = chosen if chosen is not None else [{**one, "batch": size} for size in rates]
        return [{**one, **setup, "rows_per_s": rates[setup["batch"]]} for setup in setups]

    monkeypatch.setattr(measure, "run_json", run_json)
    monkeypatch.setattr(measure, "model_of", lambda _: measure.Model("resnet50", Path("/store"), Path()))
    monkeypatch.setattr(measure.models, "pictures", lambda _: [Path("/p.jpg")])
    plan, state = complete(minutes=50, rounds=3), State(tmp_path / "s.jsonl", SETTINGS)
    for turn in (0, 1):
        measure.run(Session(turn, "resnet50", "bare", "bare"), plan, state, lambda _: None)
    assert [words[0] for words in asked] == ["fp32", "fp32", "fp16", "fp16", "int8", "int8", "int8"]
    assert float(asked[0][1]) < float(asked[1][1]) == plan.seconds
    figures = Figures(state.points)
    assert figures.bare("resnet50") == {0: 30.0}  # later ones are beside a load
    assert figures.bare("resnet50", "int8") == {0: 30.0, 1: 30.0}
    bare = [setup for setup in figures.setups("resnet50", "fp32") if not setup["decoding"]]
    assert {setup["batch"]: setup["rows_per_s"]["median"] for setup in bare} == {4: 30.0, 8: 25.0, 1: 20.0}
    decoding = [[setup["decoding"] for setup in json.loads(words[words.index("--only") + 1])] for words in asked if "--only" in words]
    assert decoding[0] == [False, False, *(True for _ in alone())]
    assert decoding[2] == [False, False]  # int8: what a single caller is compared with is fp32


def test_bare_runs_beside_a_load_are_of_the_best_setup_of_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def setup(threads: int, rate: float, p50_ms: float, *, decoding: bool) -> dict[str, Any]:
        same = {"callers": 1, "batch": 1, "spinning": False}
        return {**same, "threads": threads, "decoding": decoding, "rows_per_s": rate, "p50_ms": p50_ms}

    def run_json(_: str, *arguments: object) -> list[dict[str, Any]]:
        words = tuple(map(str, arguments))
        assert float(words[1]) == plan.seconds / 2
        asked: list[dict[str, Any]] = json.loads(words[words.index("--only") + 1])
        return asked

    monkeypatch.setattr(measure, "run_json", run_json)
    monkeypatch.setattr(measure, "model_of", lambda _: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(measure.models, "pictures", lambda _: [tmp_path / "p.jpg"])
    plan, state = complete(minutes=50, rounds=3), State(tmp_path / "s.jsonl", SETTINGS)
    session = Session(1, "resnet50", "default", "closed")
    assert measure._bare_beside(session, plan, state) == []  # nothing is known of bare runs
    slower = [setup(1, 20, 99, decoding=False), setup(3, 30, 60, decoding=True)]
    best = [setup(2, 22, 50, decoding=False), setup(4, 9, 40, decoding=True)]
    state.add("0/resnet50/bare/bare", "fp32", setups=slower + best)
    assert [one["threads"] for one in measure._bare_beside(session, plan, state)] == [2]


@pytest.mark.parametrize("fails", [False, True])
def test_one_caller_takes_turns_with_bare_runs_of_the_setup_that_was_quickest_alone(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def run_json(module: str, *arguments: object) -> dict[str, Any]:
        assert module == "benchmarks.turns"
        asked.append(tuple(map(str, arguments)))
        if fails:
            raise RuntimeError("no answer")
        return {"in_turns_p50_ms": 52.0, "in_turns_bare_p50_ms": 50.0, "in_turns_calls": 90}

    unstarted(monkeypatch, lambda *_, **__: {"requests_per_s": 18.0, "failed": 0})
    requests = tuple(tmp_path / f"{index}.http" for index in range(2))
    monkeypatch.setattr(measure, "asked_of", lambda *_, **__: SimpleNamespace(model=None, files=requests))
    monkeypatch.setattr(measure, "run_json", run_json)
    monkeypatch.setattr(measure, "model_of", lambda _: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(measure.models, "pictures", lambda _: [tmp_path / f"{index}.jpg" for index in range(2)])
    plan, state = complete(minutes=50, rounds=1), State(tmp_path / "s.jsonl", SETTINGS)
    session = Session(0, "resnet50", "default", "closed", (Load(1),))
    measure.run(session, plan, state, lambda _: None)
    assert not asked  # nothing is known of bare runs
    bare = {"callers": 1, "batch": 1, "spinning": True, "rows_per_s": 20.0}
    ways = ((1, True, 90.0), (2, True, 50.0), (2, False, 40.0))  # 40: without a picture to decode
    setups = [{**bare, "threads": threads, "decoding": decoding, "p50_ms": p50_ms} for threads, decoding, p50_ms in ways]
    state.add("0/resnet50/bare/bare", "fp32", setups=setups)
    session = replace(session, round=1)
    measure.run(session, plan, state, lambda _: None)
    (model, _, seconds, setup, *files), point = asked[0], state.of(session.key)["closed 1"]
    assert (model, float(seconds)) == (str(tmp_path / "fp32.onnx"), plan.window_s("resnet50", TURNS_SHARE))
    assert json.loads(setup) == {"threads": 2, "callers": 1, "batch": 1, "spinning": True, "decoding": True}
    pairs = [("--picture", str(tmp_path / f"{index}.jpg"), "--request", str(tmp_path / f"{index}.http")) for index in range(2)]
    assert files == [word for pair in pairs for word in pair]
    assert point["requests_per_s"] == 18.0
    assert (point["in_turns_reason"] if fails else point["in_turns_bare_p50_ms"]) == ("no answer" if fails else 50.0)


def unstarted(monkeypatch: pytest.MonkeyPatch, loaded: Callable[..., dict[str, Any]]) -> None:
    """Let `measure` start nothing, and `loaded` say what a load did."""
    served = SimpleNamespace(ready_s=1.0, processes=list, port=1)
    system = SimpleNamespace(shown="this service", answers=False, start=lambda *_, **__: nullcontext(served))
    monkeypatch.setattr(measure, "BY_NAME", {"default": system})
    monkeypatch.setattr(measure, "asked_of", lambda *_, **__: SimpleNamespace(model=None, files=()))
    monkeypatch.setattr(measure, "pss_bytes", lambda _: 0)
    monkeypatch.setattr(measure, "loaded", loaded)


def test_capacity_is_measured_before_and_after_what_a_target_compares_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([100.0, 72.0, 80.0, 75.0, 70.0, 60.0, 50.0, 45.0, 40.0])  # the machine slows

    def loaded(_: object, __: object, callers: int, ___: float, *, rate: float = 0.0, **____: object) -> dict[str, Any]:
        return {"callers": callers, "rate": rate, "requests_per_s": next(rates), "failed": 0}

    unstarted(monkeypatch, loaded)
    plan, state = complete(minutes=50, rounds=1), State(tmp_path / "s.jsonl", SETTINGS)
    session = Session(0, "near_empty", "default", "open", (Load(32), *(Load(512, percent) for percent in (80, 95, 120, 400))))
    measure.run(session, plan, state, lambda _: None)
    found = state.of(session.key)
    near, past = found["open 95"], found["open 400"]
    assert (near["callers"], near["rate"], near["requests_per_s"], near["capacity_beside_per_s"]) == (512, 76.0, 75.0, [80.0, 70.0])
    assert (past["rate"], past["requests_per_s"], past["capacity_beside_per_s"]) == (200.0, 45.0, [50.0, 40.0])
    assert (found["open 80"]["rate"], found["open 120"]["rate"]) == (80.0, 120.0)  # of what the session answered first
    assert [key for key, point in found.items() if "capacity_beside_per_s" in point] == ["open 95", "open 400"]


@pytest.mark.parametrize("failing", [(), ("before",), ("after",)])
def test_a_load_is_measured_between_its_bare_runs_and_kept_where_one_fails(
    failing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def run_json(*_: object) -> list[dict[str, Any]]:
        happened.append("after" if "load" in happened else "before")
        if happened[-1] in failing:
            raise RuntimeError("no memory")
        return [{"rows_per_s": 20.0}]

    def loaded(*_: object, **__: object) -> dict[str, Any]:
        happened.append("load")
        return {"requests_per_s": 18.0, "failed": 0}

    unstarted(monkeypatch, loaded)
    monkeypatch.setattr(measure, "run_json", run_json)
    monkeypatch.setattr(measure, "model_of", lambda _: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(measure.models, "pictures", lambda _: [tmp_path / "p.jpg"])
    plan, state = quick(rounds=1, seconds=1), State(tmp_path / "s.jsonl", SETTINGS)
    plan = replace(plan, judged=True, even=True)
    bare = {"threads": 2, "callers": 1, "batch": 1, "spinning": False, "decoding": False, "rows_per_s": 20.0, "p50_ms": 50.0}
    state.add("0/resnet50/bare/bare", "fp32", setups=[bare])
    measure.run(Session(0, "resnet50", "default", "closed", (Load(8),)), plan, state, lambda _: None)
    assert happened == ["before", "load", "after"]
    figures = Figures(state.points)
    assert figures.of("resnet50", "default", "closed 8", "requests_per_s") == {0: 18.0}
    assert figures.bare_beside("resnet50", "default", "closed 8") == ({} if failing else {0: 20.0})


@pytest.mark.parametrize("fails", [1, 2])
def test_a_system_that_does_not_start_has_a_second_chance(fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    def served(*_: object) -> None:
        starts.append(len(starts) + 1)
        if len(starts) <= fails:
            raise DidNotStart(f"did not start: the handshake of start {len(starts)} was refused")

    monkeypatch.setattr(measure, "_served", served)
    plan, state = complete(minutes=50, rounds=3), State(tmp_path / "s.jsonl", SETTINGS)
    session = Session(0, "resnet50", "pytriton", "closed")
    measure.run(session, plan, state, lambda _: None)
    assert len(starts) == 2
    said = state.of(session.key).get("start", {}).get("reason")
    assert said == (None if fails == 1 else "did not start: the handshake of start 2 was refused")
    assert "over" in state.of(session.key)


def test_a_run_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    first = State(path, SETTINGS)
    first.add("0/a/b/closed", "closed 1", requests_per_s=1.5)
    first.add("0/a/b/closed", "closed 8", requests_per_s=2.5)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"session": "0/a/b/closed", "load": "clo')  # killed while it wrote
    second = State(path, SETTINGS)
    assert list(second.of("0/a/b/closed")) == ["closed 1", "closed 8"]
    second.add("0/a/b/closed", "closed 32", requests_per_s=3.5)
    assert [point["load"] for point in State(path, SETTINGS).points] == ["closed 1", "closed 8", "closed 32"]


def test_a_run_of_other_settings_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    State(path, SETTINGS).add("0/a/b/closed", "closed 1")
    assert State(path, {**SETTINGS, "seconds": 3.0}).points == []
    kept = [json.loads(line) for line in path.with_suffix(".other.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept[1]["load"] == "closed 1"


def test_a_finished_run_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    state = State(path, SETTINGS)
    state.add("0/a/b/closed", "closed 1")
    state.finish()
    assert State(path, SETTINGS).points == []


class Stopped(Exception):
    """In place of Ctrl-C."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sessions without servers: the loads that were measured, in order; a third one is interrupted once."""
    done: list[str] = []

    class Fake:
        ready_s = 1.0

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def processes(self) -> list[object]:
            return []

    def loaded(
        _: Any, __: Any, callers: int, ___: float, *, rate: float = 0.0, seed: int = 0, warm_up_s: float = client.WARM_UP_S
    ) -> dict[str, Any]:
        assert (warm_up_s > client.WARM_UP_S) == (rate > 100)  # past capacity the queue fills first
        if len(done) == 2 and "stopped" not in done:
            done.append("stopped")
            raise Stopped
        done.append(f"{callers}@{rate:g}")
        return {"requests_per_s": 100.0, "p99_ms": 1.0, "failed": seed * 0}

    monkeypatch.setattr(type(BY_NAME["nothing"]), "start", lambda *_, **__: Fake())
    monkeypatch.setattr(measure, "asked_of", lambda *_, **__: measure.Asked(None, (), b"", 0))  # type: ignore[arg-type]
    monkeypatch.setattr(measure, "loaded", loaded)
    return done


@pytest.fixture
def session() -> Iterator[Session]:
    return Session(0, "near_empty", "nothing", "open", (Load(8), Load(32), Load(512, 50), Load(512, 400)))


def test_an_interrupted_session_measures_only_what_is_left(tmp_path: Path, served: list[str], session: Session) -> None:
    plan = smallest(seconds=1, system="nothing")
    with pytest.raises(Stopped):
        measure.run(session, plan, State(tmp_path / "s.jsonl", SETTINGS), print)
    measure.run(session, plan, State(tmp_path / "s.jsonl", SETTINGS), print)
    assert served == ["8@0", "32@0", "stopped", "512@50", "512@400"]  # shares of the 100 a second that were measured before
    measure.run(session, plan, State(tmp_path / "s.jsonl", SETTINGS), print)
    assert len(served) == 5
