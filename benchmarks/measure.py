"""One session: a system started, checked, loaded and ended; every figure of it as a point of the state."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import client, models
from benchmarks.bare import alone
from benchmarks.figures import SETUP
from benchmarks.models import Model
from benchmarks.places import PEERS
from benchmarks.plan import BARE_BEST, BARE_SHARE, CAPACITY, TURNS_SHARE, Case, Plan, Session, filling_s
from benchmarks.process import DidNotStart, PeakMemory, Served, pss_bytes
from benchmarks.state import State
from benchmarks.systems import BY_NAME, System
from tests.serving import ROOT

PICTURES = 8
BATCH = 4  # pictures of a request to classify_batch: what every peer's batcher takes at most here
Told = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What a system is asked in a case: whole requests, a picture to check it by, and the class PyTorch gives that picture."""

    model: Model
    files: tuple[Path, ...]
    picture: bytes
    expected: int


def run(session: Session, plan: Plan, state: State, told: Told) -> None:
    """Measure what the state has not yet of a session."""
    have = state.of(session.key)
    if "over" in have:
        return
    if session.part == "bare":
        _bare(session, plan, state, told)
    elif reason := _served_at_last(session, plan, state, told):
        state.add(session.key, "start", reason=reason)
    state.add(session.key, "over")


def _served_at_last(session: Session, plan: Plan, state: State, told: Told) -> str | None:
    """Why the system did not start, twice: one whose start has a race, as Triton's Python backend has, would be left out by chance."""
    for attempt in (1, 2):
        try:
            _served(session, plan, state, told)
            return None
        except DidNotStart as error:
            told(f"{BY_NAME[session.system].shown}: did not start, attempt {attempt} of 2")
            reason = str(error)
    return reason


def _served(session: Session, plan: Plan, state: State, told: Told) -> None:
    system = BY_NAME[session.system]
    asked = asked_of(session.case, system, with_expected=session.part != "memory" and system.answers)
    have = state.of(session.key)
    told(f"{system.shown}: starting")
    with system.start(asked.model, empty=session.empty) as served:
        if session.part == "memory":
            _empty(session, system, asked, served, state, plan)
            return
        wrong = check(system, asked, served) if system.answers else None
        if "start" not in have:
            state.add(session.key, "start", ready_s=served.ready_s, pss_mib=pss_bytes(served.processes()) / 2**20, wrong=wrong)
        capacity = have.get(CAPACITY.key, {}).get("requests_per_s", 0.0)
        for load in session.loads:
            if load.key in have:
                continue
            if load.percent is not None and not capacity:
                state.add(session.key, load.key, reason="nothing was answered at 32 callers, so there is no capacity to take a share of")
                continue
            told(f"{system.shown}: {load.key}")
            bracketed = plan.bracketed(session, load)
            now = _capacity(session, plan, asked, served, capacity) if bracketed else capacity
            rate = now * load.percent / 100 if load.percent is not None else 0.0
            warm_up_s = filling_s(capacity, load.percent) if load.percent is not None and load.percent > 100 else client.WARM_UP_S
            seconds = plan.load_s(session, load, capacity)
            beside = plan.bare_beside(session, load)
            before = _bare_beside(session, plan, state) if beside else []
            point = loaded(served, asked.files, load.callers, seconds, rate=rate, seed=session.round, warm_up_s=warm_up_s)
            more: dict[str, Any] = {}
            if beside:
                more["beside"] = [*before, *_bare_beside(session, plan, state)]
            if plan.in_turns(session, load):
                more |= _in_turns(session, asked, served, plan, state)
            if bracketed:
                more["capacity_beside_per_s"] = [now, _capacity(session, plan, asked, served, capacity)]
            state.add(session.key, load.key, **point, **more)
            if load == CAPACITY:
                capacity = point["requests_per_s"]


def _capacity(session: Session, plan: Plan, asked: Asked, served: Served, known: float) -> float:
    """Requests per second now; `known`, what they were before."""
    point = loaded(served, asked.files, CAPACITY.callers, plan.load_s(session, CAPACITY, known), seed=session.round)
    return float(point["requests_per_s"])


def loaded(
    served: Served,
    files: Sequence[Path],
    callers: int,
    seconds: float,
    *,
    rate: float = 0.0,
    seed: int = 0,
    warm_up_s: float = client.WARM_UP_S,
) -> dict[str, Any]:
    """What the client saw, the CPU seconds of the server for each answer, and the peak of its memory."""
    before = served.cpu_seconds()
    with PeakMemory(served) as peak:
        point = client.load(served.port, callers, seconds, files, rate=rate, seed=seed, warm_up_s=warm_up_s)
    used = served.cpu_seconds() - before
    return point | {"rate": rate, "server_cpu_s_per_request": used / max(point["answered"], 1), "pss_mib": peak.bytes / 2**20}


def _empty(session: Session, system: System, asked: Asked, served: Served, state: State, plan: Plan) -> None:
    """Memory of a server without a model: after it answered some requests, as the others have."""
    if session.empty and system.name != "empty":
        loaded(served, asked.files, 8, plan.window_s(session.case))
    state.add(session.key, "start", ready_s=served.ready_s, pss_mib=pss_bytes(served.processes()) / 2**20)


def _bare(session: Session, plan: Plan, state: State, told: Told) -> None:
    """The first round compares every set-up in short windows; the best two then get windows as long as the servers', in each round.

    The best of many short ones alone would be the luckiest: a limit that is too high, and never the same twice.
    """
    model = model_of(session.case)
    have = state.of(session.key)
    window_s, compared_s = plan.window_s(session.case), plan.window_s(session.case, BARE_SHARE)
    for precision in plan.bare_precisions(session):
        if precision in have:
            continue
        told(f"bare session.run, {precision}")
        path = model.folder / f"{precision}.onnx"
        try:
            if session.round == 0:
                compared = run_json("benchmarks.bare", path, compared_s, *(["--grid"] if plan.grid else []))
            else:
                compared = state.of(replace(session, round=0).key).get(precision, {}).get("compared", [])
            chosen = [*best_setups(compared), *(alone() if precision == "fp32" else [])]
            found = _bare_runs(path, window_s, chosen)
            state.add(session.key, precision, setups=found, **({"compared": compared} if session.round == 0 else {}))
        except RuntimeError as error:
            state.add(session.key, precision, reason=str(error))


def _bare_beside(session: Session, plan: Plan, state: State) -> list[dict[str, Any]]:
    """A bare run while the server has nothing to do, at what the first round found best, or why there is none; [] if it found nothing."""
    found = _found_bare(session, state, decoding=False)
    if not found:
        return []
    best = max(found, key=lambda one: one["rows_per_s"])
    try:
        return _bare_runs(model_of(session.case).folder / "fp32.onnx", plan.window_s(session.case) / 2, [_setup(best)])
    except RuntimeError as error:
        return [{"reason": str(error)}]


def _in_turns(session: Session, asked: Asked, served: Served, plan: Plan, state: State) -> dict[str, Any]:
    """What one caller waits for in turns with bare runs, at what the first round found quickest, or why not; {} where it found nothing."""
    found = _found_bare(session, state, decoding=True)
    if not found:
        return {}
    best = min(found, key=lambda one: one["p50_ms"])
    path, seconds = model_of(session.case).folder / "fp32.onnx", plan.window_s(session.case, TURNS_SHARE)
    pairs = zip(models.pictures(PICTURES), asked.files, strict=True)
    files = [word for picture, request in pairs for word in ("--picture", picture, "--request", request)]
    try:
        turns: dict[str, Any] = run_json("benchmarks.turns", path, served.port, seconds, json.dumps(_setup(best)), *files)
    except RuntimeError as error:
        return {"in_turns_reason": str(error)}
    return turns


def _found_bare(session: Session, state: State, *, decoding: bool) -> list[dict[str, Any]]:
    """The bare runs of the case that the first round measured."""
    found = state.of(f"0/{session.case}/bare/bare").get("fp32", {}).get("setups", [])
    return [setup for setup in found if setup["decoding"] == decoding]


def _bare_runs(path: Path, seconds: float, setups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ran: list[dict[str, Any]] = run_json(
        "benchmarks.bare", path, seconds, "--only", json.dumps(setups), "--picture", models.pictures(PICTURES)[0]
    )
    return ran


def _setup(of: Mapping[str, Any]) -> dict[str, Any]:
    return {key: of[key] for key in SETUP}


def best_setups(compared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those with the most rows per second, as `benchmarks.bare --only` takes them."""
    ranked = sorted(compared, key=lambda one: -one["rows_per_s"])[:BARE_BEST]
    return [_setup(one) for one in ranked]


def run_json(module: str, *arguments: object) -> Any:
    """The JSON that a measurement prints in a process of its own. Raises RuntimeError with its words where it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command[1:3])} ended with {result.returncode}: {result.stderr[-1500:]}")
    return json.loads(result.stdout)


def check(system: System, asked: Asked, served: Served) -> str | None:
    """What is wrong with a system's answer to a picture PyTorch was asked about; None where it names the same class."""
    try:
        said = system.ask(served, asked.picture)
    except Exception as error:  # whatever a foreign server may answer
        return f"could not be read: {type(error).__name__}: {error}"
    if said != asked.expected and system.precision == "fp32":
        return f"expected class {asked.expected} as PyTorch, got {said}"
    return None


def asked_of(case: Case, system: System, *, with_expected: bool = True) -> Asked:
    """The requests of a case in the system's own form."""
    model = model_of(case)
    pictures = [path.read_bytes() for path in models.pictures(PICTURES)]
    if case == "tensor":
        requests = [(system.tensor or system.request)(pixels(picture, model.resize)) for picture in pictures]
    elif case == "classify_batch":
        assert system.batch is not None
        requests = [system.batch([pictures[(first + turn) % PICTURES] for turn in range(BATCH)]) for first in range(PICTURES)]
    else:
        requests = [system.request(picture) for picture in pictures]
    files = tuple(client.request_file(request) for request in requests)
    return Asked(model, files, pictures[0], expected_class(case) if with_expected else -1)


@cache
def model_of(case: Case) -> Model:
    """What is served in a case."""
    if case == "digits":
        return models.digits()
    return models.near_empty() if case == "near_empty" else models.resnet50()


@cache
def expected_class(case: Case) -> int:
    """What PyTorch says of the first picture, in a process of its own: torch takes memory and threads."""
    model = model_of(case)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{PEERS / 'common'}{os.pathsep}{models.NETS}",
        "WEIGHTS": str(model.weights),
        "NET": model.name,
        "RESIZE": str(model.resize),
    }
    code = (
        "import sys, shared, shared_torch; row = shared_torch.Torch('eager')(shared.pixels(open(sys.argv[1], 'rb').read())[None])[0]; "
        "print(shared.answer(row)['predictions'][0]['class_id'])"
    )
    command = [sys.executable, "-c", code, str(models.pictures(PICTURES)[0])]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def pixels(picture: bytes, resize: int) -> bytes:
    """The picture decoded as every system decodes it."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    width, height = image.size
    image = image.resize((int(resize * width / height), resize), Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + 224, top + 224))).tobytes()
