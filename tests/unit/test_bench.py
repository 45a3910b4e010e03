"""The bench's plans and its memory: time goes where targets compare, an interrupted run measures nothing twice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import bench, client, measure, targets
from benchmarks.bare import alone
from benchmarks.benches import complete, quick, smallest, whole_grid
from benchmarks.estimate import GUESSED_CONTENDERS, seconds_of
from benchmarks.figures import Figures
from benchmarks.plan import LONGEST_FILLING_S, Load, Plan, Session, counted, filling_s, takes
from benchmarks.process import DidNotStart
from benchmarks.state import State
from benchmarks.systems import BY_NAME, SYSTEMS, kserve_binary, kserve_json, top_class
from ortserve import profile_file
from tests.bench_points import closed

SETTINGS = {"plan": "bench", "seconds": 2.0}


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [complete(minutes=50, rounds=3), whole_grid(seconds=8, rounds=3), quick(rounds=5, seconds=6)])
def test_every_session_of_a_plan_is_one_and_has_its_loads(plan: Plan) -> None:
    best = dict.fromkeys(plan.cases, ("mosec", "litserve"))
    sessions = plan.sessions(best, GUESSED_CONTENDERS)
    assert len({session.key for session in sessions}) == len(sessions)
    assert {session.system for session in sessions if session.part == "closed"} <= {system.name for system in plan.systems}
    assert all(session.loads for session in sessions if session.part in ("closed", "open"))


def test_a_bench_fits_in_its_minutes_and_uses_them() -> None:
    plan = complete(minutes=60, rounds=3)
    best = dict.fromkeys(plan.cases, ("mosec", "litserve"))
    assert seconds_of(plan, plan.sessions(best, GUESSED_CONTENDERS)) == pytest.approx(60 * 60)
    assert complete(minutes=90, rounds=3).seconds > plan.seconds


def test_time_goes_where_targets_compare() -> None:
    plan = complete(minutes=55, rounds=3)
    turns: dict[tuple[str, str], int] = {}
    for session in plan.closed_sessions(range(3), GUESSED_CONTENDERS):
        if session.part == "closed":
            turns[session.case, session.system] = turns.get((session.case, session.system), 0) + 1
    ours = {pair for pair in turns if BY_NAME[pair[1]].kind == "ours" and counted(BY_NAME[pair[1]], pair[0])}
    contenders = {(case, name) for case, names in GUESSED_CONTENDERS.items() for name in names}
    compared = ours | contenders | {("resnet50", "pytorch")}
    assert {pair for pair, count in turns.items() if count == 3} == compared
    assert {pair for pair, count in turns.items() if count == 1} == turns.keys() - compared
    assert turns["resnet50", "torchscript"] == turns["near_empty", "pytorch"] == 1
    session = Session(0, "resnet50", "default", "closed")
    assert plan.load_s(session, Load(8), 25) == plan.seconds >= 6  # 150 answers of resnet50 and more
    assert plan.load_s(Session(0, "resnet50", "mosec", "closed"), Load(1), 25) < plan.seconds / 2
    assert quick(rounds=2, seconds=6).load_s(Session(0, "resnet50", "batchable", "closed"), Load(1), 25) == 6  # there all are alike


def test_an_overload_is_measured_once_the_queue_is_full() -> None:
    session, plan = Session(0, "resnet50", "default", "open"), complete(minutes=50, rounds=3)
    assert plan.load_s(session, Load(512, 400), 25) == 10
    assert plan.load_s(session, Load(512, 400), 600) == 4
    assert plan.load_s(session, Load(512, 400), 50) == 5
    queue = profile_file.load("default").execution[-1].batching.max_queue_size
    assert filling_s(25, 400) == pytest.approx(1 + queue / 75)
    assert filling_s(25, 120) == LONGEST_FILLING_S


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
    assert measure._bare_beside(session, True, plan, state) == []  # nothing is known of bare runs
    slower = [setup(1, 20, 99, decoding=False), setup(3, 30, 60, decoding=True)]
    best = [setup(2, 22, 50, decoding=False), setup(4, 9, 40, decoding=True)]
    state.add("0/resnet50/bare/bare", "fp32", setups=slower + best)
    assert [one["threads"] for one in measure._bare_beside(session, False, plan, state)] == [2]
    assert [one["threads"] for one in measure._bare_beside(session, True, plan, state)] == [4]
    assert measure._bare_beside(session, None, plan, state) == []


def unstarted(monkeypatch: pytest.MonkeyPatch, loaded: Callable[..., dict[str, Any]]) -> None:
    """Let `measure` start nothing, and `loaded` say what a load did."""
    served = SimpleNamespace(ready_s=1.0, processes=list)
    system = SimpleNamespace(shown="this service", answers=False, start=lambda *_, **__: nullcontext(served))
    monkeypatch.setattr(measure, "BY_NAME", {"default": system})
    monkeypatch.setattr(measure, "asked_of", lambda *_, **__: SimpleNamespace(model=None, files=()))
    monkeypatch.setattr(measure, "pss_bytes", lambda _: 0)
    monkeypatch.setattr(measure, "loaded", loaded)


def test_just_below_capacity_it_is_measured_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([100.0, 94.0, 90.0])  # the machine slows

    def loaded(_: object, __: object, callers: int, ___: float, *, rate: float = 0.0, **____: object) -> dict[str, Any]:
        return {"callers": callers, "rate": rate, "requests_per_s": next(rates), "failed": 0}

    unstarted(monkeypatch, loaded)
    plan, state = complete(minutes=50, rounds=1), State(tmp_path / "s.jsonl", SETTINGS)
    session = Session(0, "near_empty", "default", "open", (Load(32), Load(512, 95)))
    measure.run(session, plan, state, lambda _: None)
    near = state.of(session.key)["open 95"]
    assert (near["callers"], near["rate"], near["requests_per_s"], near["capacity_again_per_s"]) == (512, 95.0, 94.0, 90.0)
    assert "capacity_again_per_s" not in state.of(session.key)["closed 32"]


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
    assert figures.bare_beside("resnet50", "default", "closed 8", "rows_per_s") == ({} if failing else {0: 20.0})


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


def test_what_targets_divide_by_a_bare_run_has_one_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = complete(minutes=50, rounds=3)
    beside = {
        (session.case, session.system, load.key): plan.bare_beside(session, load)
        for session in [*plan.closed_sessions([0], {}), *plan.open_sessions({"resnet50": ("mosec",)})]
        for load in session.loads
        if plan.bare_beside(session, load) is not None
    }
    asked: dict[tuple[str, str, str], bool] = {}

    def bare_beside(_: Figures, case: str, system: str, load: str, figure: str) -> dict[int, float]:
        asked[case, system, load] = figure == "p50_ms"  # of a picture that is decoded too
        return {}

    monkeypatch.setattr(Figures, "bare_beside", bare_beside)
    targets.targets(Figures([]), 2)
    assert beside == asked


def test_systems_are_measured_in_turns() -> None:
    plan = complete(minutes=50, rounds=3)
    sessions = plan.closed_sessions(range(3), {"resnet50": [*GUESSED_CONTENDERS["resnet50"], "mosec"]})
    of_mosec = [index for index, session in enumerate(sessions) if (session.system, session.case) == ("mosec", "resnet50")]
    assert len(of_mosec) == 3
    assert all(later - earlier > 10 for earlier, later in itertools.pairwise(of_mosec))


def test_the_open_loop_is_for_ours_and_the_two_best_peers_of_the_case() -> None:
    plan = complete(minutes=50, rounds=1)
    names = ("mosec", "litserve", "pytriton")
    points = [
        closed(0, name, rate, "closed 32", case)
        for case, rates in (("resnet50", (16, 15, 14)), ("near_empty", (100, 300, 200)))
        for name, rate in zip(names, rates, strict=True)
    ]
    sessions = plan.open_sessions(bench.best_peers(plan, Figures([*points, closed(0, "int8", 99, "closed 32")])))
    found = {case: [session.system for session in sessions if session.case == case] for case in plan.cases}
    assert found["resnet50"] == ["default", "mosec", "litserve"] * plan.open_rounds
    assert found["near_empty"] == ["default", "light", "litserve", "pytriton"] * plan.open_rounds
    latecomer = closed(1, "mosec", 16, "closed 32")  # in the second round: who was left out of it is not the best
    assert bench.best_peers(plan, Figures([*points, latecomer]))["resnet50"] == ["mosec"]
    assert [load.key for load in sessions[0].loads] == ["closed 32", "open 50", "open 80", "open 95", "open 120", "open 400", "closed 256"]


def test_what_is_just_below_the_capacity_of_ours_is_followed_by_that_capacity_again() -> None:
    plan = complete(minutes=50, rounds=1)
    again = {
        (session.case, session.system, load.key)
        for session in plan.open_sessions({"resnet50": ["mosec"], "near_empty": ["mosec"]})
        for load in session.loads
        if plan.capacity_again(session, load)
    }
    assert again == {("resnet50", "default", "open 95"), ("near_empty", "default", "open 95"), ("near_empty", "light", "open 95")}


def test_an_unknown_system_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no system 'nginx': expected some of nothing, default"):
        complete(minutes=1, rounds=1, systems=["nginx"])


def test_every_peer_has_pinned_requirements_and_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(SYSTEMS) + 1
    for system in SYSTEMS:
        assert system.folder.is_dir()
        if system.requirements:
            lines = (system.folder.parent / system.requirements / "requirements.txt").read_text(encoding="utf-8").splitlines()
            assert all("==" in line for line in lines if not line.startswith("#"))
            assert "://" not in "".join(lines)
    assert all(takes(BY_NAME[name], "tensor") for name in ("default", "pytriton", "ort_tuned"))


# --- resuming ---------------------------------------------------------------------------------------------------------


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


# --- requests ---------------------------------------------------------------------------------------------------------


def test_answers_of_every_protocol_name_the_same_class() -> None:
    plain = json.dumps({"predictions": [{"class_id": 7, "score": 0.5}, {"class_id": 1, "score": 0.1}]})
    assert top_class(plain.encode()) == 7
    assert top_class(json.dumps({"outputs": [{"data": [plain]}]}).encode()) == 7


def test_requests_carry_their_length() -> None:
    for request in (kserve_json(b"\xff\xd8x"), kserve_binary(b"\xff\xd8x")):
        head, body = request.split(b"\r\n\r\n", 1)
        assert f"Content-Length: {len(body)}".encode() in head
    assert kserve_binary(b"\xff\xd8x").endswith(b"\x03\x00\x00\x00\xff\xd8x")
