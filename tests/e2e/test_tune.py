"""The tuning tool on the real service: a tiny budget, a whole result; an interrupt, and the way on from it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from ortserve import profile_file
from tests.serving import ROOT, Server, bentoml_environment, until

pytestmark = pytest.mark.e2e


def command(output: Path, *options: str) -> list[str]:
    fixed = ["--model", "digits", "--objective", "throughput", "--budget-minutes", "0.2", "--output", str(output)]
    return [sys.executable, "-m", "ortserve.tune", *fixed, *options]


def tune(home: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = bentoml_environment(home)
    return subprocess.run(command(output, *options), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def services(home: Path) -> list[psutil.Process]:
    """What still serves from that store."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ORTSERVE_TUNE_SERVER") and process.environ().get("BENTOML_HOME") == str(home):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_an_interrupted_search_goes_on_and_its_profile_serves(digits_home: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.yaml"
    journal = tmp_path / "tuned.work" / "journal.jsonl"
    process = subprocess.Popen(
        command(output), cwd=ROOT, env=bentoml_environment(digits_home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until(lambda: journal.exists() and '"kind": "trial"' in journal.read_text())
        os.kill(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert services(digits_home) == []
    before = journal.read_text()

    result = tune(digits_home, output)
    assert result.returncode == 0, result.stdout + result.stderr
    assert services(digits_home) == []
    assert journal.read_text().startswith(before)
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    measured = [(entry["id"], entry["rung"]) for entry in entries if entry["kind"] == "trial"]
    assert len(measured) == len(set(measured))  # nothing was measured twice
    assert {entry["shipped"] for entry in entries if entry["kind"] == "trial"} >= {"throughput", "default"}

    loaded = profile_file.load(str(output))
    assert "# not searched" in output.read_text()
    with output.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    in_turns = {row["label"]: float(row["requests_per_s"]) for row in rows if row["part"] == "in turns"}
    assert {"shipped throughput", "shipped default"} <= set(in_turns)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with (
        Server(digits_home, env={"ORTSERVE_PROFILE": str(output)}) as server,
        urllib.request.urlopen(server.base_url + "/models") as answer,
    ):
        assert json.load(answer)["profile"] == loaded.name == "tuned"


def test_a_model_that_is_not_there_is_said_in_one_line(digits_home: Path, tmp_path: Path) -> None:
    result = tune(digits_home, tmp_path / "tuned.yaml", "--model", "nobody")
    assert result.returncode == 1
    assert result.stderr.startswith("error: the shipped profile throughput with model nobody did not start: model nobody is not in the")
