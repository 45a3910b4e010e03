"""`make bench-profiles`: what the CPUs do for a request, part by part, of this service and of the peer that comes closest.

Each system is started and loaded twice: alone, for its CPU seconds per request, and watched by py-spy, for how they divide. Writes
`benchmarks/results/profiles.json`, `profiles.md` and `profiles.png`. An interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import typer

from benchmarks import client, measure
from benchmarks.machine import heading, wait_until_idle
from benchmarks.places import RESULTS, WORK, console
from benchmarks.plan import CONNECTIONS, Case, filling_s
from benchmarks.process import Served
from benchmarks.stacks import PARTS, folded
from benchmarks.state import State
from benchmarks.systems import BY_NAME

CALLERS = 32
RATE_HZ = 100  # samples a second: more slow the server down
PY_SPY = Path(sys.executable).with_name("py-spy")
CASES: dict[Case, str] = {"resnet50": "`resnet50`", "near_empty": "near-empty model"}


class Refused(RuntimeError):
    """The kernel lets no process look into another here."""


@dataclass(frozen=True)
class Profiled:
    """A system in a case, at 32 callers or at `percent` of what it answers at those."""

    system: str
    case: Case
    percent: int | None = None

    @property
    def key(self) -> str:
        """As the state calls it."""
        return f"0/{self.case}/{self.system}/{self.percent or 'closed'}"

    @property
    def shown(self) -> str:
        """As the table calls it."""
        load = f"{CALLERS} callers" if self.percent is None else f"{self.percent} % of capacity"
        return f"{CASES[self.case]}: {BY_NAME[self.system].shown}, {load}"


# Each belongs to a target; the last one is the peer to beat.
PROFILED = (
    Profiled("default", "resnet50"),
    Profiled("light", "near_empty"),
    Profiled("default", "near_empty"),
    Profiled("default", "near_empty", 400),
    Profiled("ort_tuned2", "near_empty"),
)


def main(seconds: float = 10.0, results: Path = RESULTS) -> None:
    """Measure and write. SECONDS is how long each system is watched."""
    for one in PROFILED:
        measure.asked_of(one.case, BY_NAME[one.system])
        BY_NAME[one.system].programs()
    state = State(WORK / "profiles.jsonl", {"seconds": seconds, "profiled": [one.key for one in PROFILED]})
    busy = 0.0
    try:
        for one in PROFILED:
            if not state.of(one.key):
                busy = max(busy, wait_until_idle())
                console.print(one.shown)
                state.add(one.key, "profile", **profile(one, seconds))
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
        raise typer.Exit(130) from None
    models = ", ".join(f"{case} {measure.model_of(case).sha256[:8]}" for case in CASES)
    found = [{"shown": one.shown, **state.of(one.key)["profile"]} for one in PROFILED]
    write({**heading(f"{models} (random weights)", 1, seconds, busy), "profiles": found}, results)
    state.finish()


def profile(one: Profiled, seconds: float) -> dict[str, Any]:
    """CPU milliseconds of an answer, refusals included, and the share of each part in them."""
    system = BY_NAME[one.system]
    asked = measure.asked_of(one.case, system)
    with system.start(asked.model) as served:
        alone = measure.loaded(served, asked.files, CALLERS, seconds / 2)
        callers, more = CALLERS, {}
        if one.percent is not None:
            capacity = alone["requests_per_s"]
            callers, more = CONNECTIONS, {"rate": capacity * one.percent / 100, "warm_up_s": filling_s(capacity, one.percent)}
            alone = measure.loaded(served, asked.files, callers, seconds / 2, **more)
        with ThreadPoolExecutor(1) as pool:
            warm_up_s = more.get("warm_up_s", client.WARM_UP_S)
            # Two seconds more than is watched: py-spy needs some time to read a process's symbols.
            loading = pool.submit(
                client.load, served.port, callers, seconds + 2, asked.files, rate=more.get("rate", 0.0), warm_up_s=warm_up_s
            )
            time.sleep(warm_up_s + 1)  # until the load is what it stays
            parts, functions = watched(served, seconds)
            watched_run = loading.result()
    whole = sum(parts.values())
    return {
        "requests_per_s": alone["requests_per_s"],
        "cpu_ms_per_request": alone["server_cpu_s_per_request"] * 1000,
        "requests_per_s_while_watched": watched_run["requests_per_s"],
        "shares": {part: spent / whole for part, spent in parts.items()},
        "innermost": functions,
    }


def watched(served: Served, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """CPU seconds of each part, and the innermost functions that were seen most, each with its share of the samples."""
    before = {process.pid: _by_thread(process) for process in served.processes()}
    lines = sampled([process for process in served.processes() if _is_python(process)], seconds)
    cpu_s = {
        thread: spent - before.get(process.pid, {}).get(thread, 0.0)
        for process in served.processes()
        for thread, spent in _by_thread(process).items()
    }
    names = {thread: _name(process.pid, thread) for process in served.processes() for thread in _by_thread(process)}
    seen: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        seen[stack.rpartition(";")[2].rpartition(":")[0] + ")"] += int(count)
    return folded(lines, cpu_s, names), {function: count / seen.total() for function, count in seen.most_common(10)}


def sampled(processes: Sequence[psutil.Process], seconds: float) -> list[str]:
    """py-spy's lines of all those processes, watched at once. Raises Refused where ptrace is not allowed, RuntimeError on any failure."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(process.pid) for process in processes]
        # --nonblocking: stopping the process for each sample would take a part of its speed and change what it does.
        options = ["--duration", f"{seconds:g}", "--rate", str(RATE_HZ), "--format", "raw", "--threads", "--nonblocking"]
        running = [
            subprocess.Popen(
                [str(PY_SPY), "record", *options, "--pid", str(process.pid), "--output", str(file)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for process, file in zip(processes, files, strict=True)
        ]
        said = [each.communicate()[0] for each in running]
        for each, words in zip(running, said, strict=True):
            if each.returncode and is_refusal(words):
                raise Refused(
                    f"py-spy may not look into another process here: run as root, with CAP_SYS_PTRACE, "
                    f"or with kernel.yama.ptrace_scope 0: {words.strip()[-300:]}"
                )
            if each.returncode:
                raise RuntimeError(f"py-spy ended with {each.returncode}: {words.strip()[-1000:]}")
        return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def is_refusal(words: str) -> bool:
    """Whether py-spy's words say that the kernel said no."""
    return any(sign in words.lower() for sign in ("permission denied", "operation not permitted", "eperm"))


def write(result: dict[str, Any], folder: Path) -> None:
    """The JSON, the table and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profiles.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / "profiles.md").write_text(table(result), encoding="utf-8")
    draw(result, folder / "profiles.png")
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """A line for each system, a column for each part."""
    machine = result["machine"]
    lines = [
        f"Measured {result['measured_at'][:10]} on {machine['cpus']} CPUs ({machine['cpu']}), {result['model']}, each watched for "
        f"{result['seconds_each']:g} s. CPU milliseconds for each answer, refusals among them, and their share:",
        "",
        f"| | {' | '.join(PARTS)} | all | requests/s |",
        f"|---|{'---|' * (len(PARTS) + 2)}",
    ]
    for one in result["profiles"]:
        ms = one["cpu_ms_per_request"]
        cells = [f"{ms * share:.2f} ({share:.0%})" for share in (one["shares"][part] for part in PARTS)]
        lines.append(f"| {one['shown']} | {' | '.join(cells)} | {ms:.2f} | {one['requests_per_s']:.0f} |")
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """One bar for each system: the share of each part, and the milliseconds beside it."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawn, ax = plt.subplots(figsize=(13, 0.9 * len(result["profiles"]) + 1.8), layout="constrained")
    for index, one in enumerate(reversed(result["profiles"])):
        left = 0.0
        for number, part in enumerate(PARTS):
            share = one["shares"][part]
            ax.barh(index, share, left=left, color=f"C{number}", label=part if index == 0 else None)
            if share >= 0.04:
                ax.text(left + share / 2, index, f"{one['cpu_ms_per_request'] * share:.2g}", ha="center", va="center", fontsize=8)
            left += share
        ax.text(1.005, index, f"{one['cpu_ms_per_request']:.3g} ms", va="center", fontsize=9)
    ax.set_yticks(
        range(len(result["profiles"])), [one["shown"].replace("`", "").replace(": ", ":\n") for one in reversed(result["profiles"])]
    )
    ax.set(xlim=(0, 1.08), xlabel="share of the server's CPU time; the numbers are CPU milliseconds for each answer")
    drawn.legend(loc="outside lower center", ncols=5, fontsize=9)
    drawn.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(drawn)


def _by_thread(process: psutil.Process) -> dict[int, float]:
    try:
        return {thread.id: thread.user_time + thread.system_time for thread in process.threads()}
    except psutil.Error:
        return {}  # it ended meanwhile


def _is_python(process: psutil.Process) -> bool:
    """Whether the process runs an interpreter: its program's name may be anything."""
    try:
        return "python" in Path(process.exe()).name
    except psutil.Error:
        return False


def _name(process: int, thread: int) -> str:
    try:
        return Path(f"/proc/{process}/task/{thread}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""  # it ended meanwhile


if __name__ == "__main__":
    typer.run(main)
