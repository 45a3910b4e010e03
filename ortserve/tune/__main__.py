"""Command line: measures ways of running one model on this machine, and writes the best as a profile."""

from __future__ import annotations

import hashlib
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from ortserve import profile_file
from ortserve.cpus import available_cpus
from ortserve.errors import OrtServeError, TuneError
from ortserve.execution import GPU_PROVIDERS, Provider
from ortserve.tune import report, results, traffic
from ortserve.tune.candidate import Candidate
from ortserve.tune.journal import Journal
from ortserve.tune.objective import LOAD_SHARE, Goal
from ortserve.tune.results import Contender
from ortserve.tune.search import search
from ortserve.tune.service import CannotServe, Service
from ortserve.tune.space import Facts, Objective, baselines, shipped, space
from ortserve.tune.trial import Setup, Trials
from ortserve.tune.written import profile_text

CALLERS = {"throughput": 32, "latency": 8}  # enough to fill the batches of a CPU or a GPU; as many as a calm service has
PLAIN_WIDTH = 160  # a file or a pipe has no width of its own


def main(
    model: Annotated[str, typer.Option(help="NAME or NAME:VERSION in the BentoML store.")],
    objective: Annotated[Objective, typer.Option(help="The most requests a second, or the shortest answers.")],
    p99_ms: Annotated[
        float | None, typer.Option(min=0.1, help="Only ways of running that answer 99 of 100 requests within it.  [default: no limit]")
    ] = None,
    budget_minutes: Annotated[float, typer.Option(min=0.2, max=24 * 60, help="It ends within this, the last comparison included.")] = 10,
    pictures: Annotated[Path, typer.Option(help="Folder of pictures to send.")] = Path("examples/digits"),
    texts: Annotated[Path | None, typer.Option(help="File of texts to send, one a line.  [default: a few built-in ones]")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The profile; .csv, .png and the work folder .work lie beside it.  [default: NAME-OBJECTIVE.yaml]")
    ] = None,
    callers: Annotated[int | None, typer.Option(min=1, help="Of the closed loop.  [default: 32 for throughput, 8 for latency]")] = None,
    min_agreement: Annotated[float, typer.Option(min=0, max=1, help="Share of answers that must be the shipped profile's.")] = 0.95,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; without it an interrupted search goes on.")] = False,
) -> None:
    """Find the best way to run a model on this machine, measured on the real service, and write it as a profile."""
    console = Console(soft_wrap=True)
    goal = Goal(objective, p99_ms)
    output = output or Path(f"{model.replace(':', '-')}-{objective}.yaml")
    work = output.with_suffix(".work")
    for ending in (signal.SIGINT, signal.SIGTERM):  # the services end too; said for SIGINT as well, which a background job has ignored
        signal.signal(ending, signal.default_int_handler)
    try:
        if fresh and work.exists():
            shutil.rmtree(work)
        tune(console, goal, model, budget_minutes * 60, pictures, texts, output, work, callers or CALLERS[objective], min_agreement)
    except OrtServeError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="bold red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        message = f"interrupted: the services are stopped; the same command goes on from {work / 'journal.jsonl'}"
        Console(stderr=True, soft_wrap=True).print(message, highlight=False)
        raise typer.Exit(130) from None


def tune(
    console: Console,
    goal: Goal,
    model: str,
    budget_s: float,
    pictures: Path,
    texts: Path | None,
    output: Path,
    work: Path,
    callers: int,
    min_agreement: float,
) -> None:
    """The whole search. Writes the profile, the CSV and the picture."""
    begun = time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    facts, sha256 = ask(model, goal.objective, work)
    kind = traffic.kind_of(facts.task)
    requests = traffic.write_requests(kind, (work / "requests").absolute(), pictures, texts)
    sent = hashlib.sha256(b"".join(file.read_bytes() for file in requests)).hexdigest()
    heading = {"model": model, "files": sha256, "objective": goal.objective, "p99 limit": goal.p99_ms, "what is sent": sent}
    heading |= {"callers": callers, "provider": facts.provider, "CPUs": facts.cpus}
    journal = Journal(work / "journal.jsonl", heading)
    journal.add({"kind": "asked", "took_s": round(time.monotonic() - begun, 3)})
    setup = Setup(model, kind, requests, goal, callers, budget_s, min_agreement, work.absolute())
    contenders = measured(console, setup, journal, facts)
    best = results.winner(contenders, goal)
    made = results.trials(journal)
    about = head(model, facts, goal, journal, pictures if kind.takes == "picture" else texts, callers)
    output.write_text(profile_text(best, contenders, made, goal, about), encoding="utf-8")
    profile_file.load(str(output.absolute()))  # what is written here is what will be served
    report.write_csv(output.with_suffix(".csv"), made, contenders)
    report.plot(output.with_suffix(".png"), made, best, goal, about[0])
    console.print(table(contenders, best))
    if best.candidate.shipped and (others := [one.candidate.label for one in contenders if not one.candidate.shipped]):
        console.print(
            f"{best.candidate.label} it is: {others[0]} is not ahead of it in every round, of {results.FEWEST_ROUNDS} at least.",
            highlight=False,
        )
    refused = [trial for trial in made if trial.figures is None]
    console.print(f"{len(made)} trials of {len({trial.id for trial in made})} ways of running, {len(refused)} dropped with a reason.")
    console.print(f"Wrote {output}, {output.with_suffix('.csv')}, {output.with_suffix('.png')}. Serve it:", highlight=False)
    console.print(f"  ORTSERVE_MODEL={model} ORTSERVE_PROFILE={output.absolute()} bentoml serve", highlight=False)


def ask(model: str, objective: Objective, work: Path) -> tuple[Facts, dict[str, str]]:
    """What the service on the shipped profile says of the model, and the sha256 of its files. Raises TuneError where it does not start."""
    path = (work / "shipped.yaml").absolute()
    path.write_text(shipped(objective).yaml(), encoding="utf-8")
    try:
        with Service(model, path, work / "shipped.log") as service:
            said = service.facts(model.partition(":")[0])
    except CannotServe as error:
        raise TuneError(f"the shipped profile {objective} with model {model} {error}") from None
    manifest: dict[str, Any] = said["manifest"]
    held = tuple(manifest["variants"])
    facts = Facts(manifest["task"], said["provider"], held, manifest["max_batch"], said["batched_by"], available_cpus())
    return facts, {precision: variant["sha256"] for precision, variant in manifest["variants"].items()}


def providers(own: str) -> list[str]:
    """Those this machine's ONNX Runtime may run the model on as well: of a GPU's the others, of a CPU's OpenVINO."""
    import onnxruntime

    built: Sequence[str] = onnxruntime.get_available_providers()
    alike = GPU_PROVIDERS if own in GPU_PROVIDERS else {"CPUExecutionProvider", "OpenVINOExecutionProvider"}
    return [provider for provider in built if provider in alike and provider in get_args(Provider)]


def measured(console: Console, setup: Setup, journal: Journal, facts: Facts) -> list[Contender]:
    """The search and its final comparison: the shipped profiles and the best of the others."""
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("searching", total=setup.budget_s)
        begun, before = time.monotonic(), journal.spent_s

        def said(line: str) -> None:
            spent = before + time.monotonic() - begun
            progress.update(bar, completed=min(spent, setup.budget_s))
            console.print(f"{spent:6.0f} s  {line}", highlight=False, markup=False)

        trials = Trials(setup, journal, said)
        ours = baselines(setup.goal.objective, facts.provider)
        if (chosen := journal.find("finalists")) is None:
            ranked = search(space(setup.goal.objective, facts, providers(facts.provider)), ours, setup.goal, trials)
            others = [outcome.candidate for outcome in ranked if not outcome.candidate.shipped][:1]
            running = [one for one in ours if any(outcome.candidate.id == one.id for outcome in ranked)]
            if not ranked:
                raise TuneError(f"no way of running answered as it should: the reasons are in {setup.folder / 'journal.jsonl'}")
            chosen = {"kind": "finalists", "candidates": [asdict(one) for one in [*running, *others]]}
            journal.add(chosen)
        finalists = [Candidate(**fields) for fields in chosen["candidates"]]
        progress.update(bar, description="in turns")
        rounds = trials.in_turns(finalists)
        if journal.find("done") is None:
            around_s = before + time.monotonic() - begun - journal.spent_s  # starts and stops of the comparison
            journal.add({"kind": "done", "took_s": round(max(0.0, around_s), 3)})
    return [Contender(one, tuple(rounds[one.id])) for one in finalists]


def head(model: str, facts: Facts, goal: Goal, journal: Journal, sent: Path | None, callers: int) -> list[str]:
    """What was measured, where and how."""
    limit = f", p99 within {goal.p99_ms:g} ms" if goal.p99_ms is not None else ""
    whose = "its own" if goal.objective == "throughput" else "the shipped profile's"
    load = f"{LOAD_SHARE[goal.objective]:.0%} of {whose} capacity"
    return [
        f"{model} on {facts.cpus} CPUs, {facts.provider}: tuned for {goal.objective}{limit}, {datetime.now(UTC):%Y-%m-%d}.",
        f"Measured by python -m ortserve.tune in {journal.spent_s / 60:.1f} minutes; sent: {sent or 'built-in texts'}.",
        f"requests/s: a closed loop of {callers} callers. p50 and p99: an open loop, Poisson arrivals at {load}.",
    ]


def table(contenders: Sequence[Contender], best: Contender) -> Table:
    """The final comparison."""
    shown = Table(title=f"in turns, medians of {len(best.rounds)} rounds")
    for column in ("", "requests/s", "at /s", "p50 ms", "p99 ms", "failed"):
        shown.add_column(column, justify="left" if not column else "right")
    for one in contenders:
        figures = one.middle
        numbers = (figures.requests_per_s, figures.rate, figures.p50_ms, figures.p99_ms)
        name = f"{one.candidate.label}  <- chosen" if one is best else one.candidate.label
        shown.add_row(name, *(f"{number:.1f}" for number in numbers), f"{figures.failed:.1%}", style="bold" if one is best else "")
    return shown


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
