"""What a search leaves behind: a journal to go on from, a profile with its figures, a CSV, a picture."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from ortserve import profile_file
from ortserve.errors import TuneError
from ortserve.tune import results, traffic
from ortserve.tune.candidate import Candidate, changed, leaves
from ortserve.tune.journal import Journal
from ortserve.tune.objective import Figures, Goal
from ortserve.tune.report import plot, write_csv
from ortserve.tune.results import Contender
from ortserve.tune.space import Facts, space
from ortserve.tune.trial import Setup, Trials, turns
from ortserve.tune.written import profile_text

FACTS = Facts("image-classification", "CPUExecutionProvider", ("fp32", "int8"), 32, batched_by="batching", cpus=4)
HEADING = {"model": "digits", "objective": "throughput", "p99 limit": None}


def figures(requests_per_s: float) -> Figures:
    return Figures(requests_per_s, 5.0, requests_per_s * 0.8, 5.0, 10.0, 0.0, 100)


def entry(candidate: Candidate, requests_per_s: float | None, rung: int = 0, reason: str = "") -> dict[str, object]:
    measured = None if requests_per_s is None else asdict(figures(requests_per_s))
    facts = {"id": candidate.id, "label": candidate.label, "shipped": candidate.shipped, "data": candidate.data}
    return {"kind": "trial", **facts, "rung": rung, "seconds": 2.0, "figures": measured, "reason": reason, "agreement": 1.0, "took_s": 5.0}


def ways() -> tuple[Candidate, Candidate, Candidate]:
    tried = space("throughput", FACTS, [])
    return tried.base, tried.candidate({"batch": "batch 16"}), tried.candidate({"precision": "int8", "spinning": "spinning on"})


def journal(path: Path) -> Journal:
    """Of a search that measured three ways of running, one of which failed."""
    made = Journal(path, HEADING)
    base, batch, broken = ways()
    made.add(entry(base, 100))
    made.add(entry(batch, 130))
    made.add(entry(broken, None, reason="did not start: no such thing"))
    made.add(entry(base, 110, rung=1))
    return made


def trials(made: Journal, folder: Path, said: list[str]) -> Trials:
    setup = Setup("digits", traffic.KINDS["image-classification"], (), Goal("throughput"), 8, 600, 0.95, folder)
    return Trials(setup, made, said.append)


def test_an_interrupted_search_takes_what_it_measured_from_its_journal(tmp_path: Path) -> None:
    journal(tmp_path / "journal.jsonl")
    again = Journal(tmp_path / "journal.jsonl", HEADING)
    assert again.spent_s == 20
    said: list[str] = []
    bench = trials(again, tmp_path, said)  # starting a service would fail: there is nothing to send
    base, batch, broken = ways()
    assert bench.known(batch)
    outcome = bench.measure(batch, 0)
    assert outcome is not None
    assert outcome.figures == figures(130)
    failed = bench.measure(broken, 0)
    assert failed is not None
    assert (failed.figures, failed.reason) == (None, "did not start: no such thing")
    assert not bench.known(Candidate("other", changed(base.data, {"workers": 3})))
    assert len(again.entries) == 5


def test_a_line_cut_off_by_the_interrupt_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = len(journal(path).entries)
    with path.open("a") as file:
        file.write('{"kind": "trial", "id": "half')
    again = Journal(path, HEADING)
    assert len(again.entries) == whole
    again.add({"kind": "done"})
    assert len(Journal(path, HEADING).entries) == whole + 1
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()][-1] == "done"


def test_a_journal_of_another_search_is_not_gone_on_with(tmp_path: Path) -> None:
    journal(tmp_path / "journal.jsonl")
    with pytest.raises(TuneError, match=r"objective 'throughput', this one has 'latency'.*--fresh"):
        Journal(tmp_path / "journal.jsonl", {**HEADING, "objective": "latency"})


def test_the_budget_counts_what_was_spent_before_the_interrupt(tmp_path: Path) -> None:
    made = journal(tmp_path / "journal.jsonl")
    fresh = trials(made, tmp_path, []).room()
    made.add({"kind": "asked", "took_s": 10_000})
    spent = trials(made, tmp_path, [])
    assert fresh > spent.room() == 1
    assert spent.measure(Candidate("other", changed(ways()[0].data, {"workers": 3})), 0) is None


def finished(path: Path) -> tuple[list[results.Trial], list[Contender], Contender]:
    base, batch, _ = ways()
    contenders = [Contender(base, (figures(100), figures(90), figures(110))), Contender(batch, (figures(120), figures(140), figures(130)))]
    return results.trials(journal(path)), contenders, results.winner(contenders, Goal("throughput"))


def test_the_profile_loads_and_has_its_figures_beside_every_key(tmp_path: Path) -> None:
    made, contenders, best = finished(tmp_path / "journal.jsonl")
    text = profile_text(best, contenders, made, Goal("throughput"), ["digits on 4 CPUs."])
    file = tmp_path / "tuned.yaml"
    file.write_text(text)
    loaded = profile_file.load(str(file))
    assert loaded.execution[0].batching.max_batch_size == 16
    written = yaml.safe_load(text)
    assert {key: value for key, value in leaves(written) if key != "description"} == {
        key: value for key, value in leaves(best.candidate.data) if key != "description"
    }
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    sections = [line for line in lines if line.rstrip().endswith(":")]
    assert all(" # " in line for line in lines if line not in sections and not line.startswith("description"))
    size = next(line for line in lines if "max_batch_size: 16" in line)
    assert "16: 130.0/s, p99 10.0 ms; 8: 110.0/s, p99 10.0 ms" in size  # the longest trial of each
    assert "# not searched" in next(line for line in lines if "request_timeout_ms" in line)
    assert "shipped throughput: 100.0 requests/s" in text
    assert "batch 16: 130.0 requests/s" in text


def test_where_nothing_is_better_the_shipped_profile_is_the_result() -> None:
    base, batch, _ = ways()
    contenders = [Contender(base, (figures(100),)), Contender(batch, (figures(100),))]
    assert results.winner(contenders, Goal("throughput")).candidate.shipped == "throughput"


@pytest.mark.parametrize(
    ("lead", "chosen"),
    [
        ([1, 1, 1, 1, 1], ""),  # little, but in every round
        ([9, 9, 9, 9, 0], "throughput"),  # a lead that one round turns
        ([9, 9], "throughput"),  # of two, chance brings one in four
        ([-1, -1, -1], "throughput"),
    ],
)
def test_what_is_not_shipped_must_be_ahead_in_every_round(lead: list[float], chosen: str) -> None:
    base, batch, _ = ways()
    drift = [100, 80, 120, 90, 110][: len(lead)]
    ours = Contender(base, tuple(figures(rate) for rate in drift))
    theirs = Contender(batch, tuple(figures(rate + more) for rate, more in zip(drift, lead, strict=True)))
    assert results.winner([ours, theirs], Goal("throughput")).candidate.shipped == chosen


@pytest.mark.parametrize(("lead", "chosen"), [([1, 1, 1], "default"), ([9, 9, 0], "throughput"), ([9, 9], "throughput")])
def test_another_shipped_profile_must_be_ahead_of_the_objectives_own_in_every_round(lead: list[float], chosen: str) -> None:
    base, batch, _ = ways()
    own = Contender(base, (figures(100),) * len(lead))
    other = Contender(replace(batch, shipped="default"), tuple(figures(100 + more) for more in lead))
    assert results.winner([other, own], Goal("throughput")).candidate.shipped == chosen


def test_what_was_found_must_be_ahead_of_the_best_shipped_profile() -> None:
    base, batch, broken = ways()
    own, found = Contender(base, (figures(100),) * 3), Contender(batch, (figures(101), figures(103), figures(101)))
    other = Contender(replace(broken, shipped="default"), (figures(102),) * 3)
    assert results.winner([found, own, other], Goal("throughput")) is other
    assert results.winner([found, own], Goal("throughput")) is found


def test_a_limit_that_only_the_other_keeps_is_worth_more_than_speed() -> None:
    base, batch, _ = ways()
    late = replace(figures(200), p99_ms=60)
    contenders = [Contender(base, (late, late, figures(200))), Contender(batch, (figures(100),) * 3)]
    assert results.winner(contenders, Goal("throughput", 50)).candidate is batch


def test_the_rounds_fit_with_what_is_around_their_loops_and_are_short_rather_than_few() -> None:
    assert turns(70, around_s=4, shortest_s=5, most=5) == (5, 5)  # each 14
    assert turns(69, around_s=4, shortest_s=5, most=5) == (4, 6.625)
    assert turns(1000, around_s=4, shortest_s=5, most=5) == (5, 40)  # longer brings no more
    assert turns(13, around_s=4, shortest_s=5, most=5) == (0, 5)


def test_the_csv_has_every_trial_with_its_settings_or_its_reason(tmp_path: Path) -> None:
    made, contenders, _ = finished(tmp_path / "journal.jsonl")
    write_csv(tmp_path / "tuned.csv", made, contenders)
    with (tmp_path / "tuned.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["search"] * 4 + ["in turns"] * 6
    assert rows[1]["execution.0.batching.max_batch_size"] == "16"
    assert rows[1]["requests_per_s"] == "130"
    assert rows[2]["reason"] == "did not start: no such thing"
    assert rows[2]["requests_per_s"] == ""


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    made, _, best = finished(tmp_path / "journal.jsonl")
    plot(tmp_path / "tuned.png", made, best, Goal("throughput", 50), "digits")
    assert (tmp_path / "tuned.png").read_bytes().startswith(b"\x89PNG")
