"""The bench's plans: time goes where targets compare."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest

from benchmarks import bench, targets
from benchmarks.benches import complete, quick, whole_grid
from benchmarks.estimate import GUESSED_CONTENDERS, seconds_of
from benchmarks.figures import Figures
from benchmarks.plan import LONGEST_FILLING_S, Load, Plan, Session, counted, filling_s, takes
from benchmarks.systems import BY_NAME, SYSTEMS, kserve_binary, kserve_json, top_class
from ortserve import profile_file
from tests.bench_points import closed

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


def where(plan: Plan, measures: Callable[[Session, Load], bool]) -> set[tuple[str, str, str]]:
    """Case, system and load of what a plan measures so."""
    sessions = [*plan.closed_sessions([0], {}), *plan.open_sessions({"resnet50": ("mosec",), "near_empty": ("mosec",)})]
    return {(session.case, session.system, load.key) for session in sessions for load in session.loads if measures(session, load)}


def test_what_targets_divide_by_a_bare_run_has_one_beside_it_or_in_turns_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = complete(minutes=50, rounds=3)
    beside: set[tuple[str, str, str]] = set()
    in_turns: set[tuple[str, str, str]] = set()

    def bare_beside(_: Figures, case: str, system: str, load: str) -> dict[int, float]:
        beside.add((case, system, load))
        return {}

    def of(_: Figures, case: str, system: str, load: str, figure: str, part: str = "closed") -> dict[int, float]:
        if figure.startswith("in_turns") and part == "closed":
            in_turns.add((case, system, load))
        return {}

    monkeypatch.setattr(Figures, "bare_beside", bare_beside)
    monkeypatch.setattr(Figures, "of", of)
    targets.targets(Figures([]), 2)
    assert where(plan, plan.bare_beside) == beside
    assert where(plan, plan.in_turns) == in_turns


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
    second = next(session for session in complete(minutes=50, rounds=2).open_sessions({}) if session.round == 1)
    assert [load.key for load in second.loads] == ["closed 32", "open 50", "open 80", "open 95", "open 400"]  # what targets look at


def test_what_a_target_compares_with_the_capacity_of_ours_is_measured_between_two_looks_at_it() -> None:
    plan = complete(minutes=50, rounds=1)
    bracketed = where(plan, plan.bracketed)
    ours = (("resnet50", "default"), ("near_empty", "default"), ("near_empty", "light"))
    assert bracketed == {(*one, load) for one in ours for load in ("open 95", "open 400")}


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
