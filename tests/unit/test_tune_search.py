"""The search against a machine whose best way of running is known; what it measures, drops, keeps and finds again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ortserve import profile_file
from ortserve.tune.candidate import Candidate, changed, leaves
from ortserve.tune.objective import Figures, Goal, front
from ortserve.tune.search import RUNGS, Outcome, search
from ortserve.tune.space import BASELINES, Facts, Space, baselines, shipped, space

FACTS = Facts("image-classification", "CPUExecutionProvider", ("fp32", "int8"), 32, batched_by="batching", cpus=4)
GPU = Facts("image-classification", "CUDAExecutionProvider", ("fp32", "fp16"), 64, batched_by="batching", cpus=16)
TEXTS = Facts("feature-extraction", "CPUExecutionProvider", ("fp32",), 64, batched_by="text_batching", cpus=2)


def figures(requests_per_s: float, p99_ms: float = 10.0) -> Figures:
    return Figures(requests_per_s, 5.0, requests_per_s * 0.8, p99_ms / 2, p99_ms, 0.0, 100)


class Machine:
    """Measures by a formula: int8 doubles, one thread for each of 4 batches in flight gives half more, batches of 16 a tenth more."""

    def __init__(self, room: int = 40, trials: int = 10_000, broken: str = "", p99_ms: float = 10.0) -> None:
        self.trials: list[tuple[str, int]] = []
        self._room, self._left, self._broken, self._p99_ms = room, trials, broken, p99_ms

    def measure(self, candidate: Candidate, rung: int) -> Outcome | None:
        if len(self.trials) >= self._left:
            return None
        self.trials.append((candidate.label, rung))
        if self._broken and self._broken in candidate.label:
            return Outcome(candidate, rung, None, "did not start: no such thing")
        keys = dict(leaves(candidate.data))
        speed = 100.0
        speed *= 2 if keys["execution.0.precision"] == ["int8"] else 1
        together = keys["execution.0.session.intra_op_num_threads"] == 1 and keys["execution.0.batching.max_in_flight"] == 4
        speed *= 1.5 if together else 1
        speed *= 1.1 if keys["execution.0.batching.max_batch_size"] == 16 else 1
        speed *= 1 if keys["execution.0.session.allow_spinning"] else 0.7
        return Outcome(candidate, rung, figures(speed, self._p99_ms * (3 if together else 1)))

    def known(self, _: Candidate) -> bool:
        return False

    def room(self) -> int:
        return self._room


def found(machine: Machine, goal: Goal | None = None) -> list[Outcome]:
    return search(
        space("throughput", FACTS, ["CPUExecutionProvider"]),
        baselines("throughput", FACTS.provider)[:2],
        goal or Goal("throughput"),
        machine,
    )


def test_what_is_best_together_is_found_without_measuring_every_combination() -> None:
    machine = Machine()
    best = found(machine)[0]
    assert best.figures is not None
    assert best.figures.requests_per_s == pytest.approx(330)
    knobs = space("throughput", FACTS, []).knobs
    combinations = 1
    for knob in knobs:
        combinations *= len(knob.alternatives)
    assert len({label for label, _ in machine.trials}) < combinations / 5


@pytest.mark.parametrize("room", [12, 24, 40])
def test_what_helped_alone_is_laid_together_before_anything_else_is_tried_again(room: int) -> None:
    machine = Machine(room=room)
    found(machine)
    parts = ("int8", "threads 1, in flight 4", "batch 16")
    at = next(number for number, (label, _) in enumerate(machine.trials) if all(part in label for part in parts))
    assert at < 45  # one knob after another needs 46 or more


def test_the_longer_a_measurement_the_fewer_have_it() -> None:
    machine = Machine()
    found(machine)
    made = Counter(rung for _, rung in machine.trials)
    assert made[0] > made[1] > made[2] > 0
    assert max(made) == RUNGS - 1


def test_the_worst_never_get_a_long_measurement_and_the_shipped_ones_always_do() -> None:
    machine = Machine()
    found(machine)
    longest = {label for label, rung in machine.trials if rung == RUNGS - 1}
    assert not any("spinning off" in label and "int8" not in label for label in longest)
    assert {"shipped throughput", "shipped default"} <= longest


def test_what_does_not_start_is_dropped_and_what_it_is_part_of_is_tried_no_more_than_once_each() -> None:
    machine = Machine(broken="int8")
    ranked = found(machine)
    assert not any("int8" in outcome.candidate.label for outcome in ranked)
    assert all(count == 1 for (label, _), count in Counter(machine.trials).items() if "int8" in label)
    assert ranked[0].figures is not None
    assert ranked[0].figures.requests_per_s == pytest.approx(165)


def test_a_limit_on_p99_is_kept_before_speed_counts() -> None:
    best = found(Machine(), Goal("throughput", p99_ms=20))[0]  # what is in flight together takes 30 ms
    assert best.figures is not None
    assert best.figures.requests_per_s == pytest.approx(220)


@pytest.mark.parametrize("trials", [1, 5, 30])
def test_the_time_being_up_ends_it_with_what_is_known(trials: int) -> None:
    machine = Machine(trials=trials)
    ranked = found(machine)
    assert len(machine.trials) == trials
    assert ranked
    assert ranked[0].figures is not None


def test_little_room_means_one_alternative_of_each_knob_first() -> None:
    tight = Machine(room=6, trials=14)
    found(tight)
    first = {label for label, rung in tight.trials if rung == 0 and "shipped" not in label}
    assert len(first) >= 4
    assert any("int8" in label for label in first)
    assert any("batch" in label for label in first)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
@pytest.mark.parametrize("facts", [FACTS, GPU, TEXTS])
def test_every_way_of_running_is_a_profile_that_loads(objective: str, facts: Facts, tmp_path: Path) -> None:
    tried: Space = space(objective, facts, [facts.provider, "TensorrtExecutionProvider"] if facts is GPU else [])  # type: ignore[arg-type]
    candidates = [tried.candidate({knob: label}) for knob, label in tried.singles()]
    assert len({one.id for one in candidates}) > 12
    for candidate in candidates:
        file = tmp_path / "candidate.yaml"
        file.write_text(candidate.yaml())
        loaded = profile_file.load(str(file))
        assert len(loaded.execution) == 1


def test_the_sizes_of_a_batch_that_have_a_graph_each_end_at_the_largest() -> None:
    batch = next(knob for knob in space("throughput", GPU, []).knobs if knob.name == "batch")
    assert batch.alternatives["batch 16"]["execution.0.batching.buckets"] == [1, 2, 4, 8, 16]


def test_what_the_shipped_profiles_have_is_among_the_sizes_tried() -> None:
    batch = next(knob for knob in space("throughput", FACTS, []).knobs if knob.name == "batch")
    of_shipped = {dict(leaves(one.data))["execution.0.batching.max_batch_size"] for one in baselines("throughput", FACTS.provider)}
    assert {f"batch {size}" for size in of_shipped | {6}} <= set(batch.alternatives)


def test_light_is_to_be_beaten_for_throughput_where_it_has_an_execution() -> None:
    assert [one.shipped for one in baselines("throughput", "CPUExecutionProvider")] == ["throughput", "default", "light"]
    assert [one.shipped for one in baselines("throughput", "CUDAExecutionProvider")] == ["throughput", "default"]
    assert [one.shipped for one in baselines("latency", "CPUExecutionProvider")] == ["latency", "default"]
    assert all(names[0] == objective for objective, names in BASELINES.items())


def test_the_precisions_tried_are_those_of_the_package() -> None:
    labels = {label for knob in space("latency", FACTS, []).knobs if knob.name == "precision" for label in knob.alternatives}
    assert labels == {"fp32", "int8"}
    assert not [knob for knob in space("latency", TEXTS, []).knobs if knob.name == "precision"]  # there is nothing to choose


def test_two_ways_of_writing_the_same_profile_are_one_candidate() -> None:
    base = shipped("throughput")
    said = changed(base.data, {"tracing.enabled": False, "placement": "in_process"})
    assert Candidate("said", said).id == base.id
    assert Candidate("other", changed(base.data, {"workers": 2})).id != base.id


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [(10.0, 5.0), (20.0, 9.0), (20.0, 12.0), (15.0, 9.0), (30.0, 40.0), (5.0, 5.0)]
    assert [points[index] for index in front(points)] == [(10.0, 5.0), (20.0, 9.0), (30.0, 40.0)]


def test_short_answers_are_ranked_by_median_and_p99_whatever_the_throughput() -> None:
    goal = Goal("latency")
    assert goal.rank(figures(10, p99_ms=5)) < goal.rank(figures(1000, p99_ms=6))
    assert goal.rank(figures(10, p99_ms=50)) < goal.rank(Figures(1000, 1, 800, 1, 2, 0.5, 100))  # half of them refused


@pytest.mark.parametrize("section", ["batching", "text_batching", "brief_batching"])
def test_the_section_that_the_service_said_is_the_one_that_is_turned(section: str) -> None:
    facts = Facts("image-classification", "CPUExecutionProvider", ("fp32",), 32, batched_by=section, cpus=2)
    for knob in space("throughput", facts, []).knobs:
        for change in knob.alternatives.values():
            assert {key.split(".")[2] for key in change if "batching" in key} <= {section}
