"""`make bench-text`: sentences per second of one embedder behind this service and behind others, same client, same texts, in turns.

all-MiniLM-L6-v2; texts of 16 tokens, of 128, and mixed; one a request from 32 callers, and 16 a request from 2. Round by round, so that a
drift of the machine hits all alike; medians and their spread are written to `benchmarks/results/text.json` and, for people, `text.md`.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from tokenizers import Tokenizer

from benchmarks import client, embedders
from benchmarks.machine import heading, headline, summary, wait_until_idle
from benchmarks.measure import loaded, run_json
from benchmarks.models import HOME
from benchmarks.places import RESULTS, WORK, console
from benchmarks.process import Served
from benchmarks.systems import int8_profile, served_here
from ortserve.export.tasks.feature_extraction import SENTENCES
from tests.serving import build_model
from tests.texts import minilm

LENGTHS = ("16", "128", "mixed")  # tokens, special ones included
# Texts in a request, callers: 32 texts are under way in both. A request must be short beside the window, or its end decides the figure.
SHAPES = {"single": (1, 32), "many": (16, 2)}
NAMES = {
    "ours": "this service, fp32",
    "ours_int8": "this service, int8",
    "sentence_transformers": "sentence-transformers 6.2 behind FastAPI",
    "infinity": "infinity-emb 0.0.78, torch",
    "fastembed": "fastembed 0.9.1 (ONNX Runtime) behind FastAPI",
}
IN_PROCESS = "sentence-transformers 6.2 in process, no server"
BARE = {
    "wide": "limit: bare `session.run`, every CPU on one batch",
    "narrow": "limit: bare `session.run`, one thread for each of two batches",
}


def main(rounds: int = 3, seconds: float = 4.0, write: bool = True) -> None:
    """Measure and write. SECONDS is the time of each measurement, after a second or more of warming up."""
    built()
    files = text_files()
    for name in ("infinity", "sentence_transformers", "fastembed"):
        embedders.programs(name)
    idle = wait_until_idle()
    runs: dict[str, list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as started:
        model = {"ORTSERVE_MODEL": "minilm"}
        servers = {
            "ours": served_here(model),
            "ours_int8": served_here({**model, "ORTSERVE_PROFILE": str(int8_profile())}),
            "sentence_transformers": embedders.sentence_transformers(),
            "infinity": embedders.infinity(),
            "fastembed": embedders.fastembed(),
        }
        for name, server in servers.items():
            console.print(f"starting {name}")
            started.enter_context(server)
        for turn in range(rounds):
            for length in LENGTHS:
                console.print(f"round {turn + 1} of {rounds}: {length} tokens")
                for shape, (texts, callers) in SHAPES.items():
                    for name, server in servers.items():
                        path = embedders.PATHS.get(name, "/embed")
                        chosen = files["infinity" if name == "infinity" else "embed", shape, length]
                        requests = [client.as_request(Path(file), path) for file in chosen]
                        runs.setdefault(f"{name} {shape} {length}", []).append(load(server, callers, seconds, requests, texts))
                alone = run_json("benchmarks.in_process", seconds, *files["embed", "many", length])
                runs.setdefault(f"in_process many {length}", []).append(alone)
                bare = run_json("benchmarks.bare_text", package(), seconds, *files["embed", "many", length])
                for way in BARE:
                    runs.setdefault(f"{way} many {length}", []).append({"sentences_per_s": bare[f"{way}_sentences_per_s"]})
    result = {
        **heading("all-MiniLM-L6-v2", rounds, seconds, idle),
        "runs": {name: totals(of_name) for name, of_name in runs.items()},
        "over": {
            name: {f"{shape} {length}": over(runs, name, shape, length) for shape in SHAPES for length in LENGTHS}
            for name in NAMES
            if name != "ours"
        },
    }
    if write:
        (RESULTS / "text.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (RESULTS / "text.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def built() -> None:
    """The embedder in fp32 and int8, built where it is not there yet."""
    HOME.mkdir(parents=True, exist_ok=True)
    if not (HOME / "models" / "minilm" / "latest").exists():
        console.print("building all-MiniLM-L6-v2 once")
        build_model(HOME, f"hf:{minilm()}", "--name", "minilm", "--precision", "fp32,int8")


def package() -> Path:
    """The folder of the embedder's package."""
    folder = HOME / "models" / "minilm"
    return folder / (folder / "latest").read_text(encoding="utf-8").strip()


def text_files() -> dict[tuple[str, str, str], list[str]]:
    """Bodies by who takes them, shape and length: sentences cut and joined to their number of tokens, none twice."""
    tokenizer = Tokenizer.from_file(str(minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    words = [word for line in SENTENCES.read_text(encoding="utf-8").splitlines() if line.isascii() for word in line.split()]
    chance = random.Random(0)
    folder = WORK / "texts"
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[tuple[str, str, str], list[str]] = {}
    for length in LENGTHS:
        texts = [text_of(tokenizer, words, chance, int(length) if length != "mixed" else mixed(chance)) for _ in range(512)]
        for shape, (size, _) in SHAPES.items():
            for takes, body in (("embed", "inputs"), ("infinity", "input")):
                paths = files[takes, shape, length] = []
                for at in range(0, len(texts) if size > 1 else 128, size):
                    path = folder / f"{takes}_{shape}_{length}_{at}.json"
                    extra = {"model": "minilm"} if takes == "infinity" else {}
                    path.write_text(json.dumps({body: texts[at : at + size], **extra}), encoding="utf-8")
                    paths.append(str(path))
    return files


def mixed(chance: random.Random) -> int:
    """A length as questions, sentences and paragraphs have it: most short, some of 200 tokens."""
    return min(200, max(5, round(chance.lognormvariate(3.3, 0.9))))


def text_of(tokenizer: Tokenizer, words: Sequence[str], chance: random.Random, tokens: int) -> str:
    """Random words of `tokens` tokens."""
    chosen: list[str] = []
    while len(tokenizer.encode(" ".join(chosen))) < tokens:
        chosen.append(chance.choice(words))
    while len(tokenizer.encode(" ".join(chosen))) > tokens:
        chosen.pop()
    while len(tokenizer.encode(" ".join(chosen))) < tokens:
        chosen.append("a")
    return " ".join(chosen)


def load(server: Served, callers: int, seconds: float, requests: Sequence[Path], texts: int) -> dict[str, Any]:
    """A closed loop of `callers`; sentences per second, and the CPU seconds the server used for each."""
    run = loaded(server, requests, callers, seconds)
    return run | {"sentences_per_s": run["requests_per_s"] * texts, "server_cpu_s_per_sentence": run["server_cpu_s_per_request"] / texts}


def totals(of_name: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each figure of several runs by its median and spread; the answers that were no 200 counted."""
    figures = [key for key in ("sentences_per_s", "p50_ms", "p99_ms", "server_cpu_s_per_sentence") if key in of_name[0]]
    failed = sum(run.get("failed", 0) for run in of_name)
    return {key: summary([run[key] for run in of_name]) for key in figures} | {"failed": failed}


def over(runs: Mapping[str, Sequence[dict[str, Any]]], name: str, shape: str, length: str) -> dict[str, float]:
    """Our fp32 sentences per second over another's, round by round; over one a second where it answered none in the window."""
    ours, theirs = (runs[f"{system} {shape} {length}"] for system in ("ours", name))
    return summary([one["sentences_per_s"] / max(other["sentences_per_s"], 1.0) for one, other in zip(ours, theirs, strict=True)])


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    heads = [f"{length} tokens" if length != "mixed" else "mixed" for length in LENGTHS]
    lines = [
        f"{headline(result)} (lowest to highest); the client shares the CPUs. Sentences per second:",
        "",
        f"| one text a request, 32 callers | {' | '.join(heads)} | p99 ms, mixed | failed |",
        "|---|---|---|---|---|---|",
        *(_row(result, name, "single", shown) for name, shown in NAMES.items()),
        "",
        f"| 16 texts a request, 2 callers | {' | '.join(heads)} | p99 ms, mixed | failed |",
        "|---|---|---|---|---|---|",
        *(_row(result, name, "many", shown) for name, shown in NAMES.items()),
        _row(result, "in_process", "many", IN_PROCESS),
        *(_row(result, way, "many", shown) for way, shown in BARE.items()),
    ]
    return "\n".join(lines) + "\n"


def _row(result: dict[str, Any], name: str, shape: str, shown: str) -> str:
    runs = [result["runs"][f"{name} {shape} {length}"] for length in LENGTHS]
    rates = [run["sentences_per_s"] for run in runs]
    cells = [f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})" for rate in rates]
    p99 = f"{runs[-1]['p99_ms']['median']:.0f}" if "p99_ms" in runs[-1] else "-"
    return f"| {shown} | {' | '.join(cells)} | {p99} | {sum(run['failed'] for run in runs)} |"


if __name__ == "__main__":
    typer.run(main)
