"""`make bench`, `make bench-full`: every system on this machine, in turns, in one run; into `benchmarks/results/bench.json` and tables.

Each system is started by itself, checked against PyTorch's answer, loaded and ended, round by round, so that a drift of the machine hits
all alike. An interrupted run goes on where it was when it is started again: each finished point is a line of `benchmarks/work/bench.jsonl`.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import client, measure, plots, tables, targets
from benchmarks.benches import complete, smallest, whole_grid
from benchmarks.contenders import PEERS, contenders, in_every_round
from benchmarks.estimate import seconds_of
from benchmarks.figures import Figures, ranked
from benchmarks.machine import heading, machine, wait_until_idle
from benchmarks.places import RESULTS, WORK, console, digest_of
from benchmarks.plan import COUNTED_PEERS, Case, Plan, Session, takes
from benchmarks.state import State
from benchmarks.systems import INDUCTOR

Which = Literal["bench", "full", "smallest"]
BEST_PEERS = 2  # beside ours under open loop
SOURCES = (
    *("service.py", "ortserve/**/*.py", "ortserve/native/**/*.[ch]", "profiles/*.yaml", "benchmarks/*.py", "benchmarks/client.c"),
    *("benchmarks/nets/*.py", "benchmarks/peers/**/*.py", "benchmarks/peers/**/*.txt", "benchmarks/peers/**/*.json"),
)


def main(
    which: Annotated[Which, typer.Argument()] = "bench",
    minutes: Annotated[float, typer.Option(help="How long `bench` may take once everything is installed and built.")] = 55.0,
    rounds: int = 3,
    seconds: Annotated[float, typer.Option(help="Of a window, of `full` and `smallest`.")] = 8.0,
    system: Annotated[list[str] | None, typer.Option(help="Only these systems.")] = None,
    results: Annotated[Path, typer.Option(help="Where the result is written.")] = RESULTS,
    fresh: Annotated[bool, typer.Option(help="Forget what an interrupted run has measured.")] = False,
    report: Annotated[bool, typer.Option(help="Measure nothing: write tables and plots of the JSON again.")] = False,
) -> None:
    """Measure and write."""
    if report:
        write(json.loads((results / f"{_stem(which)}.json").read_text(encoding="utf-8")), results, _stem(which))
        return
    try:
        plan = _plan(which, minutes, rounds, seconds, system or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    result, state = run(plan, fresh=fresh)
    write(result, results, _stem(which))
    state.finish()


def run(plan: Plan, *, fresh: bool = False) -> tuple[dict[str, Any], State]:
    """The whole result, after everything of the plan was measured that was not yet; and the state, to be finished once it is written.

    An interrupt, or SIGTERM, ends the server that runs and raises typer.Exit.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(plan, fresh=fresh)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
        raise typer.Exit(130) from None


def _run(plan: Plan, *, fresh: bool) -> tuple[dict[str, Any], State]:
    path = WORK / f"{plan.name}.jsonl"
    if fresh:
        path.unlink(missing_ok=True)
    prepare(plan)
    state = State(path, settings(plan))
    if len(state.points):
        console.print(f"going on after {len(state.points)} points of {path}")
    busy = [_run_all(plan, plan.closed_sessions([0], {}) + plan.memory_sessions(), state, "closed loops, every system")]
    going_on = {case: contenders(Figures(state.points), case, COUNTED_PEERS.get(case, ())) for case in plan.cases}
    busy += [
        _run_all(plan, plan.closed_sessions(range(1, plan.rounds), going_on), state, "closed loops, those near the best"),
        _run_all(plan, plan.open_sessions(best_peers(plan, Figures(state.points))), state, "open loops"),
    ]
    models = ", ".join(dict.fromkeys(f"{model.name} {model.sha256[:8]}" for model in map(measure.model_of, plan.cases)))
    result = {
        **heading(f"{models} (random weights)", plan.rounds, round(plan.seconds, 1), max(busy)),
        "points": [_short(point) for point in state.points],
    }
    return result, state


def write(result: dict[str, Any], folder: Path, stem: str) -> None:
    """The JSON, the tables, the targets and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = Figures(result["points"])
    found = targets.targets(figures, result["machine"]["cpus"])
    (folder / f"{stem}.json").write_text(as_json(result), encoding="utf-8")
    (folder / f"{stem}.md").write_text(tables.full(result, figures), encoding="utf-8")
    if stem == "bench":
        (folder / "bench_short.md").write_text(tables.short(result, figures), encoding="utf-8")
        (folder / "bench_readme.md").write_text(tables.shortest(result, figures, targets.met(found)), encoding="utf-8")
        (folder / "targets.md").write_text(targets.table(found), encoding="utf-8")
    plots.draw(figures, folder, stem)
    print(tables.short(result, figures), targets.table(found), sep="\n")


def prepare(plan: Plan) -> None:
    """Everything that is made once, before anything is timed: the client, the models, the environments of the systems, their requests."""
    client.compiled()
    for case in plan.cases:
        measure.expected_class(case)
        for system in plan.systems:
            if takes(system, case):
                measure.asked_of(case, system)
    for system in plan.systems:
        system.programs()
        if system.env.get("BACKEND") == "compile" and not INDUCTOR.exists():
            with system.start(measure.model_of("resnet50")):
                console.print("torch.compile has compiled")


def settings(plan: Plan) -> dict[str, Any]:
    """What a run must have in common with the one it goes on from."""
    return {
        "plan": plan.name,
        "rounds": plan.rounds,
        "seconds": round(plan.seconds, 3),
        "systems": [system.name for system in plan.systems],
        "machine": machine(),
        "sources": digest_of(*SOURCES),  # what is measured and what measures: a run does not go on with other code, profiles or peers
        "models": {case: measure.model_of(case).sha256 for case in plan.cases},
    }


def best_peers(plan: Plan, figures: Figures) -> dict[Case, Sequence[str]]:
    """The peers of each case with the most requests per second at 32 callers, of those that every round measured."""
    return {
        case: ranked(in_every_round({name: figures.of(case, name, "closed 32", "requests_per_s") for name in PEERS}))[:BEST_PEERS]
        for case in plan.cases
    }


def _run_all(plan: Plan, sessions: Sequence[Session], state: State, title: str) -> float:
    """Measure the sessions; how busy the machine was with other things before a round, at most."""
    left = [session for session in sessions if "over" not in state.of(session.key)]
    busy = 0.0
    if not left:
        return busy
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s, about"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=seconds_of(plan, left))
        turn = -1
        for session in left:
            if session.round != turn:
                turn, busy = session.round, max(busy, wait_until_idle(patience_s=plan.patience_s))
            began = time.monotonic()

            def told(what: str, session: Session = session) -> None:
                progress.update(task, description=f"round {session.round + 1}, {session.case}: {what}")

            measure.run(session, plan, state, told)
            progress.advance(task, seconds_of(plan, [session]))
            console.print(f"{session.key}: {_said(state, session)}, {time.monotonic() - began:.0f} s")
    return busy


def _said(state: State, session: Session) -> str:
    """A session in one line."""
    words = []
    for load, point in state.of(session.key).items():
        if reason := point.get("reason") or point.get("wrong"):
            words.append(f"{load}: {str(reason)[-300:]}")
        elif "requests_per_s" in point:
            words.append(
                f"{load}: {point['requests_per_s']:.1f}/s p99 {point['p99_ms']:.0f} ms"
                + (f", {point['failed']} failed" if point["failed"] else "")
            )
        elif "ready_s" in point:
            words.append(f"ready after {point['ready_s']:.1f} s")
    return "; ".join(words) or "done"


def _plan(which: Which, minutes: float, rounds: int, seconds: float, systems: Sequence[str]) -> Plan:
    if which == "full":
        return whole_grid(seconds=seconds, rounds=rounds, systems=systems)
    if which == "smallest":
        return smallest(seconds=seconds, system=systems[0] if systems else "nothing")
    return complete(minutes=minutes, rounds=rounds, systems=systems)


def _stem(which: Which) -> str:
    return "bench" if which == "bench" else f"bench_{which}"


def _short(value: Any) -> Any:
    """With figures of five digits: no more is measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    return [_short(one) for one in value] if isinstance(value, list) else value


def as_json(result: dict[str, Any]) -> str:
    """One line for each point, so that two results can be compared line by line."""
    points = ",\n    ".join(json.dumps(point) for point in result["points"])
    head = json.dumps({key: value for key, value in result.items() if key != "points"}, indent=2)
    return f'{head[:-2]},\n  "points": [\n    {points}\n  ]\n}}\n'


if __name__ == "__main__":
    typer.run(main)
