"""The whole command on a service that is made up: what it measures follows a formula, what it writes is real."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from rich.console import Console

from ortserve import profile_file
from ortserve.errors import TuneError
from ortserve.tune import __main__ as command
from ortserve.tune import trial
from ortserve.tune.objective import Figures, Goal
from ortserve.tune.service import CannotServe
from ortserve.tune.space import BASELINES, Objective
from tests.serving import ROOT


class FakeService:
    """Starts at once, with any profile but one whose threads sleep at once; an int8 model is twice as fast and, where it is said, wrong."""

    starts: ClassVar[Counter[str]] = Counter()
    wrong = False

    def __init__(self, model: str, profile: Path, log: Path) -> None:
        del model, log
        self.port = 1
        self.data: dict[str, Any] = yaml.safe_load(profile.read_text())
        self.execution = self.data["execution"][0]
        FakeService.starts[profile.name] += 1

    def __enter__(self) -> FakeService:
        if self.execution.get("session", {}).get("allow_spinning") is False:
            raise CannotServe("did not start: it sleeps")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def facts(self, _: str) -> dict[str, Any]:
        tensor = {"name": "pixels", "dtype": "uint8", "shape": ["batch", 8, 8, 3]}
        variants = {precision: {"sha256": precision} for precision in ("fp32", "int8")}
        manifest = {"task": "image-classification", "inputs": [tensor], "variants": variants, "max_batch": 8}
        return {"provider": "CPUExecutionProvider", "batched_by": "batching", "manifest": manifest}

    def send(self, _: bytes) -> tuple[int, Any]:
        label = "9" if FakeService.wrong and self.execution["precision"] == ["int8"] else "7"
        return 200, {"predictions": [{"label": label}]}


def fake_load(_: trial.Trials, service: FakeService, seconds: float, rate: float | None, seed: int) -> Figures:
    del seconds, seed
    speed = 200.0 if service.execution["precision"] == ["int8"] else 100.0
    return Figures(speed, 5.0, rate or speed * 0.8, 5.0, 1000 / speed, 0.0, 100)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> type[FakeService]:
    monkeypatch.setattr(trial, "Service", FakeService)
    monkeypatch.setattr(command, "Service", FakeService)
    monkeypatch.setattr(trial.Trials, "_load", fake_load)
    monkeypatch.setattr(FakeService, "starts", Counter())
    monkeypatch.setattr(FakeService, "wrong", False)
    return FakeService


def tune(output: Path, goal: Goal | None = None, budget_s: float = 3600) -> None:
    work = output.with_suffix(".work")
    pictures = ROOT / "examples" / "digits"
    command.tune(Console(quiet=True), goal or Goal("throughput"), "digits", budget_s, pictures, None, output, work, 4, 0.95)


def rows(output: Path) -> list[dict[str, str]]:
    with output.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("machine")
def test_the_best_is_written_as_a_profile_beside_all_that_was_tried(tmp_path: Path) -> None:
    tune(tmp_path / "tuned.yaml")
    assert profile_file.load(str(tmp_path / "tuned.yaml")).execution[0].precision == ("int8",)
    in_turns = [row for row in rows(tmp_path / "tuned.yaml") if row["part"] == "in turns"]
    assert {row["shipped"] for row in in_turns} == {"throughput", "default", ""}
    assert Counter(row["shipped"] for row in in_turns) == {"throughput": 5, "default": 5, "": 5}
    dropped = {row["reason"] for row in rows(tmp_path / "tuned.yaml") if row["reason"]}
    assert dropped == {"did not start: it sleeps"}
    assert "precision: [int8] # [int8]: 200.0/s, p99 5.0 ms; [fp32]: 100.0/s, p99 10.0 ms" in (tmp_path / "tuned.yaml").read_text()


def test_answers_that_are_not_the_shipped_profiles_are_no_way_to_run(tmp_path: Path, machine: type[FakeService]) -> None:
    machine.wrong = True
    tune(tmp_path / "tuned.yaml")
    assert profile_file.load(str(tmp_path / "tuned.yaml")).execution[0].precision == ("fp32",)
    assert "only 0.0% of its answers are the shipped profile's, expected 95.0%" in {row["reason"] for row in rows(tmp_path / "tuned.yaml")}


def test_a_search_that_is_done_is_not_made_again(tmp_path: Path, machine: type[FakeService]) -> None:
    tune(tmp_path / "tuned.yaml")
    first = rows(tmp_path / "tuned.yaml")
    machine.starts.clear()
    tune(tmp_path / "tuned.yaml")
    assert rows(tmp_path / "tuned.yaml") == first
    assert set(machine.starts) == {"shipped.yaml"}  # which is asked whether the model is still the same


@pytest.mark.usefixtures("machine")
def test_a_search_that_was_interrupted_measures_only_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def interrupted(*arguments: Any) -> Figures:
        nonlocal made
        made += 1
        if made == 9:
            raise KeyboardInterrupt
        return fake_load(*arguments)

    monkeypatch.setattr(trial.Trials, "_load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "tuned.yaml")
    journal = tmp_path / "tuned.work" / "journal.jsonl"
    before = journal.read_text()
    tune(tmp_path / "tuned.yaml")
    assert journal.read_text().startswith(before)
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    trials = Counter((entry["id"], entry["rung"]) for entry in entries if entry["kind"] == "trial")
    assert set(trials.values()) == {1}
    assert profile_file.load(str(tmp_path / "tuned.yaml")).execution[0].precision == ("int8",)


@pytest.mark.usefixtures("machine")
def test_short_answers_are_compared_at_one_rate_for_all(tmp_path: Path) -> None:
    tune(tmp_path / "tuned.yaml", Goal("latency"))
    rates = {row["rate"] for row in rows(tmp_path / "tuned.yaml") if row["rate"]}
    assert rates == {"80.0", "50.0"}  # the very first trial's, of its own capacity; then half of that capacity
    assert profile_file.load(str(tmp_path / "tuned.yaml")).execution[0].precision == ("int8",)


class Clock:
    """Stands for the module `time`: it goes on only where something is said to take time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("objective", ["throughput", "latency"])
@pytest.mark.parametrize(("budget_s", "slower_s"), [(180, 0), (450, 3), (720, 3), (3600, 3)])
def test_it_ends_within_its_budget(
    budget_s: int, slower_s: int, objective: Objective, tmp_path: Path, machine: type[FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, chance = Clock(), random.Random(budget_s)

    def start(service: FakeService) -> FakeService:
        clock.now += chance.uniform(3, 5)
        return service

    def stop(_: FakeService, *__: object) -> None:
        clock.now += chance.uniform(0.5, 1.5)

    def load(trials: trial.Trials, service: FakeService, seconds: float, rate: float | None, seed: int) -> Figures:
        under_way_s = chance.uniform(0.5, 2.5) + slower_s * clock.now / budget_s  # at the end of the loops
        clock.now += 2 * seconds + trial.WARM_UP_S + under_way_s
        return fake_load(trials, service, seconds, rate, seed)

    for module in (command, trial):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(machine, "__enter__", start)
    monkeypatch.setattr(machine, "__exit__", stop)
    monkeypatch.setattr(trial.Trials, "_load", load)
    tune(tmp_path / "tuned.yaml", Goal(objective), budget_s)
    assert clock.now <= budget_s
    in_turns = Counter(row["shipped"] for row in rows(tmp_path / "tuned.yaml") if row["part"] == "in turns")
    assert set(in_turns) == {*BASELINES[objective], ""}
    assert set(in_turns.values()) <= {3, 4, 5}
    spent = sum(json.loads(line).get("took_s", 0) for line in (tmp_path / "tuned.work" / "journal.jsonl").read_text().splitlines())
    assert spent == pytest.approx(clock.now, abs=1)  # nothing was left out


def test_no_time_still_compares_the_first_shipped_profiles(
    tmp_path: Path, machine: type[FakeService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "__enter__", lambda service: service)  # light's threads sleep
    tune(tmp_path / "tuned.yaml", budget_s=0.1)
    assert {row["shipped"] for row in rows(tmp_path / "tuned.yaml") if row["part"] == "in turns"} == {"throughput", "default"}


def test_a_shipped_profile_that_does_not_start_is_said(tmp_path: Path, machine: type[FakeService], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: FakeService) -> FakeService:
        raise CannotServe("did not start: no such model")

    monkeypatch.setattr(machine, "__enter__", refuse)
    with pytest.raises(TuneError, match="the shipped profile throughput with model digits did not start: no such model"):
        tune(tmp_path / "tuned.yaml")
