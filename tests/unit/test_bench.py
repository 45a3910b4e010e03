"""The bench's arithmetic and its memory: ratios are of one round, targets compare medians, an interrupted run measures nothing twice."""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from benchmarks import bench, client, measure, operators, tables, targets, techniques
from benchmarks import quick as quick_tables
from benchmarks.figures import Figures, best_of, ranked, ratios
from benchmarks.plan import LONGEST_FILLING_S, Load, Plan, Session, complete, counted, filling_s, quick, smallest, takes, whole_grid
from benchmarks.state import State
from benchmarks.systems import BY_NAME, SYSTEMS, kserve_binary, kserve_json, top_class
from benchmarks.targets import Target
from ortserve import profile_file

SETTINGS = {"plan": "bench", "seconds": 2.0}


def point(session: str, load: str, **figures: Any) -> dict[str, Any]:
    """As the state has it."""
    return {"session": session, "load": load, **figures}


def closed(turn: int, system: str, rate: float, load: str = "closed 8", case: str = "resnet50", **more: Any) -> dict[str, Any]:
    """A point of a closed loop."""
    return point(f"{turn}/{case}/{system}/closed", load, requests_per_s=rate, failed=0, **more)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_ratios_are_of_the_same_round() -> None:
    assert ratios({0: 10.0, 1: 30.0, 2: 5.0}, {1: 10.0, 0: 20.0}) == [0.5, 3.0]
    assert ratios({0: 1.0}, {0: 0.0}) == []  # a peer that answered nothing is no measure


def test_the_best_of_each_round_may_be_another() -> None:
    assert best_of({"a": {0: 1.0, 1: 5.0}, "b": {0: 2.0, 1: 4.0, 2: 3.0}}) == {0: 2.0, 1: 5.0, 2: 3.0}
    assert best_of({"a": {0: 1.0}, "b": {0: 2.0}}, min) == {0: 1.0}
    assert ranked({"slow": {0: 1.0, 1: 9.0, 2: 2.0}, "fast": {0: 3.0}, "none": {}}) == ["fast", "slow"]


def test_bare_runs_count_by_their_best_setup_of_each_round() -> None:
    def setup(rate: float, p50: float, decoding: bool = False) -> dict[str, Any]:
        return {"threads": 2, "callers": 1, "batch": 1, "spinning": False, "decoding": decoding, "rows_per_s": rate, "p50_ms": p50}

    figures = Figures(
        [
            point("0/resnet50/bare/bare", "fp32", setups=[setup(20, 50), setup(22, 90), setup(18, 55, True), setup(17, 54, True)]),
            point("1/resnet50/bare/bare", "fp32", setups=[setup(24, 40), setup(12, 80), setup(30, 45, True)]),
            point("2/resnet50/bare/bare", "fp32", reason="it failed"),
        ]
    )
    assert figures.bare("resnet50") == {0: 22, 1: 24}  # 30 is with decoding, so not a bare run
    assert figures.bare_alone_ms("resnet50") == {0: 54, 1: 45}


def test_memory_is_the_peak_over_the_loads() -> None:
    points = [closed(0, "default", 1, load, pss_mib=mib) for load, mib in (("closed 1", 200.0), ("closed 8", 250.0), ("closed 64", 240.0))]
    assert Figures(points).peak_mib("resnet50", "default", ["closed 1", "closed 8", "closed 64"]) == {0: 250.0}


def test_why_a_system_has_no_figures_is_kept() -> None:
    figures = Figures([point("0/resnet50/mosec/closed", "start", reason="did not start: no such file")])
    assert figures.reason("resnet50", "mosec") == "did not start: no such file"
    assert figures.of("resnet50", "mosec", "closed 8", "requests_per_s") == {}
    result = {"measured_at": "2026-01-01", "machine": {"cpus": 2, "cpu": "x"}, "model": "m", "rounds": 1, "seconds_each": 1.0}
    assert "did not start: no such file" in tables.full(result, figures)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_a_target_compares_its_median_and_shows_its_spread() -> None:
    assert Target("x", 0.95, True, (0.9, 0.96, 0.99)).met
    assert not Target("x", 0.95, True, (0.9, 0.94, 0.99)).met
    assert Target("x", 1.0, False, (0.5, 1.0, 7.0)).met
    assert Target("x", 1.0, True, ()).met is None
    assert Target("x", 0.95, True, (0.9, 0.94, 0.99)).row() == "| x | >= 0.95 | 0.94 | 0.90 to 0.99 |  | **missed** |"
    assert "not measured" in Target("x", 1.0, True, ()).row()


def test_a_target_that_the_machine_does_not_allow_says_so() -> None:
    beyond, within = Target("x", 2.0, True, (1.5,), best=(1.7, 1.8, 2.5)), Target("x", 0.5, False, (0.7,), best=(0.4,))
    assert beyond.row() == "| x | >= 2 | 1.50 | 1.50 to 1.50 | 1.80 | **missed**, out of reach here |"
    assert within.row() == "| x | <= 0.5 | 0.70 | 0.70 to 0.70 | 0.40 | **missed** |"
    assert Target("x", 2.0, True, (2.1,), best=(1.8,)).row().endswith("| 1.80 | met |")  # noise may pass a limit; met is met
    assert "0 of 2 met; 1 of the others out of reach here." in targets.table([beyond, within])


def test_the_limit_is_the_same_ratio_for_what_the_bare_session_and_decoding_do_in_that_round() -> None:
    def bare(turn: int, case: str, precision: str, *setups: dict[str, Any]) -> dict[str, Any]:
        return point(f"{turn}/{case}/bare/bare", precision, setups=list(setups))

    def setup(rate: float, decoding: bool = False, cpu_s: float = 0.1) -> dict[str, Any]:
        same = {"threads": 2, "callers": 1, "batch": 1, "spinning": False, "p50_ms": 40.0}
        return {**same, "decoding": decoding, "rows_per_s": rate, "cpu_s_per_row": cpu_s}

    near = {"case": "near_empty"}
    figures = Figures(
        [
            bare(0, "resnet50", "fp32", setup(20.0)),
            bare(1, "resnet50", "fp32", setup(30.0)),
            bare(0, "resnet50", "int8", setup(36.0)),
            bare(
                0, "near_empty", "fp32", setup(9000.0), setup(400.0, decoding=True, cpu_s=0.0025), setup(410.0, decoding=True, cpu_s=0.004)
            ),
            *(closed(turn, "default", 20.0) for turn in (0, 1)),
            *(closed(turn, "pytorch", 10.0) for turn in (0, 1)),
            closed(0, "mosec", 16.0),
            closed(0, "mosec", 500.0, server_cpu_s_per_request=0.004, **near),
            closed(0, "light", 700.0, server_cpu_s_per_request=0.003, **near),
        ]
    )
    assert named(figures, "`resnet50` fp32, 8 callers, over PyTorch").best == (2.0, 3.0)
    assert named(figures, "`resnet50` fp32, 8 callers, over the best peer").best == (1.25, 3.0)  # in the second round PyTorch is the best
    assert named(figures, "`resnet50` fp32, 8 callers, over the best bare").best == pytest.approx((2 / (2 / 20 + 0.0025) / 20,))
    assert named(figures, "`resnet50` int8, 8 callers, over PyTorch").best == (3.6,)
    throughput = named(figures, "near-empty model, light profile, 8 callers, over the best peer")
    assert (throughput.values, throughput.best) == ((1.4,), pytest.approx((2 / 0.0025 / 500,)))
    cpu = named(figures, "near-empty model, light profile, 8 callers: server CPU")
    assert (cpu.values, cpu.best) == (pytest.approx((0.75,)), pytest.approx((0.625,)))


def named(figures: Figures, start: str) -> Target:
    """The one target whose text begins so."""
    (found,) = [target for target in targets.targets(figures, 2) if target.what.startswith(start)]
    return found


def test_the_best_peer_is_the_best_of_each_round_and_never_a_limit_or_ours() -> None:
    figures = Figures(
        [
            *(closed(turn, "default", 20.0) for turn in (0, 1)),
            *(closed(turn, "nothing", 9000.0) for turn in (0, 1)),
            *(closed(turn, "int8", 90.0) for turn in (0, 1)),
            closed(0, "mosec", 10.0),
            closed(1, "mosec", 16.0),
            closed(0, "litserve", 16.0),
            closed(1, "litserve", 10.0),
        ]
    )
    assert named(figures, "`resnet50` fp32, 8 callers, over the best peer").values == (1.25, 1.25)


def test_cpu_is_compared_with_the_thriftiest_peer_that_answered() -> None:
    near = {"case": "near_empty"}
    figures = Figures(
        [
            closed(0, "default", 500, server_cpu_s_per_request=0.002, **near),
            closed(0, "mosec", 300, server_cpu_s_per_request=0.005, **near),
            closed(0, "litserve", 200, server_cpu_s_per_request=0.004, **near),
            closed(0, "split", 0, server_cpu_s_per_request=0.0001, **near),
        ]
    )
    assert named(figures, "near-empty model, default profile, 8 callers: server CPU").values == (0.5,)


def test_overload_is_compared_with_the_capacity_of_the_same_session() -> None:
    session = "0/near_empty/default/open"
    figures = Figures(
        [
            point(session, "closed 32", requests_per_s=500.0, failed=0),
            closed(0, "default", 800.0, "closed 32", case="near_empty"),
            point(session, "open 400", requests_per_s=490.0, p99_ms=5000.0, failed_p50_ms=3.0, failed=1500),
        ]
    )
    assert named(figures, "400 % of capacity, near-empty model, default profile: goodput").values == (0.98,)
    assert named(figures, "400 % of capacity, near-empty model, default profile: p99").values == (0.5,)
    assert named(figures, "400 % of capacity, near-empty model, default profile: median time").values == (3.0,)
    assert named(figures, "errors below capacity").values == (0.0,)  # refusals past it are no errors


def test_memory_takes_each_server_without_a_model_off() -> None:
    figures = Figures(
        [
            closed(0, "default", 20, pss_mib=300.0),
            closed(0, "mosec", 20, pss_mib=250.0),
            closed(0, "batchable", 20, pss_mib=340.0),
            point("0/near_empty/empty/memory/empty", "start", pss_mib=150.0),
            point("0/near_empty/mosec/memory/empty", "start", pss_mib=50.0),
        ]
    )
    # Mosec's 200 over its own empty server; BentoML's batching, 190 over BentoML's empty one, is the leanest.
    assert named(figures, "`resnet50`: peak memory").values == pytest.approx((150 / 190,))


# --- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [complete(minutes=50, rounds=3), whole_grid(seconds=8, rounds=3), quick(rounds=5, seconds=6)])
def test_every_session_of_a_plan_is_one_and_has_its_loads(plan: Plan) -> None:
    best = dict.fromkeys(plan.cases, ("mosec", "litserve"))
    sessions = plan.sessions(best)
    assert len({session.key for session in sessions}) == len(sessions)
    assert {session.system for session in sessions if session.part == "closed"} <= {system.name for system in plan.systems}
    assert all(session.loads for session in sessions if session.part in ("closed", "open"))


def test_a_bench_fits_in_its_minutes_and_uses_them() -> None:
    plan = complete(minutes=60, rounds=3)
    best = dict.fromkeys(plan.cases, ("mosec", "litserve"))
    assert plan.estimate_s(plan.sessions(best)) == pytest.approx(60 * 60)
    assert complete(minutes=90, rounds=3).seconds > plan.seconds


def test_time_goes_where_targets_compare() -> None:
    plan = complete(minutes=50, rounds=3)
    turns: dict[tuple[str, str], int] = {}
    for session in plan.closed_sessions():
        if session.part == "closed":
            turns[session.case, session.system] = turns.get((session.case, session.system), 0) + 1
    compared = {pair for pair in turns if counted(BY_NAME[pair[1]], pair[0])}
    assert {pair for pair, count in turns.items() if count == 3} == compared
    assert {pair for pair, count in turns.items() if count == 1} == turns.keys() - compared
    assert {("resnet50", "ort_tuned2"), ("near_empty", "ort_tuned2"), ("near_empty", "light"), ("resnet50", "pytorch")} <= compared
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
        one = {"threads": 2, "callers": 1, "batch": 1, "spinning": False, "decoding": False, "p50_ms": 1.0}
        rates = {1: 20.0, 4: 30.0, 8: 25.0}
        sizes = [setup["batch"] for setup in chosen] if chosen is not None else list(rates)
        return [{**one, "batch": size, "rows_per_s": rates[size]} for size in sizes]

    monkeypatch.setattr(measure, "run_json", run_json)
    monkeypatch.setattr(measure, "model_of", lambda _: measure.Model("resnet50", Path("/store"), Path()))
    monkeypatch.setattr(measure.models, "pictures", lambda _: [Path("/p.jpg")])
    plan, state = complete(minutes=50, rounds=3), State(tmp_path / "s.jsonl", SETTINGS)
    for turn in (0, 1):
        measure.run(Session(turn, "resnet50", "bare", "bare"), plan, state, lambda _: None)
    assert [words[0] for words in asked] == ["fp32", "fp32", "fp16", "fp16", "int8", "int8", "fp32", "int8"]
    assert float(asked[0][1]) < float(asked[1][1]) == plan.seconds
    figures = Figures(state.points)
    assert figures.bare("resnet50") == {0: 30.0, 1: 30.0}
    assert {setup["batch"]: setup["rows_per_s"]["median"] for setup in figures.setups("resnet50", "fp32")} == {4: 30.0, 8: 25.0, 1: 20.0}


def test_systems_are_measured_in_turns() -> None:
    plan = complete(minutes=50, rounds=3)
    of_mosec = [index for index, session in enumerate(plan.closed_sessions()) if (session.system, session.case) == ("mosec", "resnet50")]
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
    assert [load.key for load in sessions[0].loads] == ["closed 32", "open 50", "open 80", "open 95", "open 120", "open 400", "closed 256"]


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


# --- the quick bench and the techniques -------------------------------------------------------------------------------


def test_the_quick_tables_show_each_system_beside_the_bare_runs() -> None:
    bare = {"threads": 2, "callers": 1, "batch": 1, "spinning": False, "decoding": False, "rows_per_s": 20.0, "p50_ms": 50.0}
    more = {"p50_ms": 10.0, "p99_ms": 20.0, "server_cpu_s_per_request": 0.003}
    points = [point("0/resnet50/bare/bare", "fp32", setups=[bare])]
    for case in ("resnet50", "near_empty"):
        points += [closed(0, name, rate, case=case, **more) for name, rate in (("default", 19.0), ("batchable", 10.0))]
    for turn, ready_s in ((0, 9.0), (1, 4.0), (2, 5.0)):
        points += [
            point(f"{turn}/digits/{name}/{part}", "start", ready_s=ready_s, pss_mib=150.0)
            for name, part in (("default", "memory"), ("empty", "memory/empty"))
        ]
    result = {"measured_at": "2026-01-01", "machine": {"cpus": 2, "cpu": "x"}, "model": "m", "rounds": 1, "seconds_each": 1.0}
    figures = Figures(points)
    assert (
        "| 8 | this service, default profile | 19.0 (19.0 to 19.0) | 0.95 (0.95 to 0.95) | 10 | 20 | 3.00 | 0 |"
        in quick_tables.resnet50_table(result, figures)
    )
    assert "| 8 | BentoML `batchable=True`, same graph | 10 (10 to 10) | 10.0 | 20.0 | 3.00 | 0 |" in quick_tables.overhead_table(
        result, figures
    )
    assert "| this service, `digits` | 4.5 | 150 |" in quick_tables.start_table(figures)  # the first start does not count


@pytest.mark.parametrize("technique", techniques.TECHNIQUES, ids=lambda technique: technique.name)
def test_what_a_technique_takes_away_is_a_profile(technique: techniques.Technique, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(techniques, "WORK", tmp_path)
    without = profile_file.load(str(techniques.changed(technique)))
    assert (without != profile_file.load(technique.profile).model_copy(update={"name": without.name})) or technique.env
    assert without.execution[-1].provider == "CPUExecutionProvider"


def test_the_time_of_a_run_is_told_by_operator(tmp_path: Path) -> None:
    net = """<ir_version: 10, opset_import: ["" : 18]> net (uint8[batch,4,4,3] pixels) => (float[batch,4,4,3] probabilities) {
        f = Cast <to = 1> (pixels)
        e = Exp (f)
        g = Exp (e)
        probabilities = Softmax <axis = 1> (g)
    }"""
    onnx.save(onnx.parser.parse_model(net), tmp_path / "net.onnx")
    found = operators.operators_ms(tmp_path / "net.onnx")
    assert {kind: one["nodes"] for kind, one in found.items()} == {"Cast": 1, "Exp": 2, "Softmax": 1}
    assert all(one["ms"] > 0 for one in found.values())


def test_the_table_of_operators_says_where_a_precision_has_none() -> None:
    conv, small = {"nodes": 2.0, "ms": 9.996}, {"nodes": 1.0, "ms": 0.004}
    result = {
        "measured_at": "2026-01-01",
        "machine": {"cpus": 2, "cpu": "x"},
        "model": "m",
        "rounds": 1,
        "seconds_each": 1.0,
        "int8_over_fp32": [{"setup": operators.setups()[0], "median": 3.0, "min": 2.0, "max": 4.0}],
        "operators_ms": {"fp32": {"Conv": conv, "Softmax": small}, "int8": {"QLinearConv": {"nodes": 2.0, "ms": 3.0}}},
    }
    shown = operators.table(result)
    assert "| `Conv` | 10.00 (2) | - |" in shown
    assert "| `QLinearConv` | - | 3.00 (2) |" in shown
    assert "| all others | 0.00 | 0.00 |" in shown
    assert "| together | 10.0 | 3.0 |" in shown


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(bench.__file__).parent.glob("*.py")))
def test_every_measurement_finds_what_it_is_made_of(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}" if name != "__init__" else "benchmarks")
