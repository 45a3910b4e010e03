"""What may be tuned: for each knob the alternatives worth measuring for a model on a machine. Nothing here is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import yaml

from ortserve.execution import GPU_PROVIDERS
from ortserve.profile_file import SHIPPED
from ortserve.tune.candidate import Candidate, Change, Data, changed

Objective = Literal["throughput", "latency"]
SESSION = "execution.0.session"
SECTIONS = ("batching", "text_batching", "brief_batching")
BASELINES: Mapping[Objective, Sequence[str]] = {"throughput": ("throughput", "default", "light"), "latency": ("latency", "default")}
ALWAYS = 2  # of them are measured whatever the time; light, for models cheaper than their pictures, where there is some


@dataclass(frozen=True, slots=True)
class Facts:
    """What the running service said of the model and the machine."""

    task: str
    provider: str  # the one the shipped profile runs on
    precisions: tuple[str, ...]  # those the package holds
    max_batch: int  # the largest batch the package was verified at
    batched_by: str  # the section of the profile that its rows are batched by; every shipped one has text_batching for rows of any length
    cpus: int


@dataclass(frozen=True, slots=True)
class Knob:
    """Alternatives of which one is chosen: label -> change. The most promising first: a short budget takes the first of each knob."""

    name: str
    alternatives: Mapping[str, Change]


@dataclass(frozen=True, slots=True)
class Space:
    """The base, and the knobs that can be turned on it."""

    base: Candidate
    knobs: tuple[Knob, ...]

    def singles(self) -> Iterator[tuple[str, str]]:
        """Every (knob, alternative), one of each knob in turn."""
        columns = [[(knob.name, label) for label in knob.alternatives] for knob in self.knobs]
        for turn in zip_longest(*columns):
            yield from (choice for choice in turn if choice is not None)

    def candidate(self, choices: Mapping[str, str]) -> Candidate:
        """The base with those alternatives, knob -> label, laid over it in the order of the knobs."""
        data, labels = self.base.data, []
        for knob in self.knobs:
            if knob.name in choices:
                data = changed(data, knob.alternatives[choices[knob.name]])
                labels.append(choices[knob.name])
        data = roomy(data)
        return Candidate(", ".join(labels) or self.base.label, data)


def shipped(name: str, provider: str | None = None) -> Candidate:
    """The shipped profile, as it comes; with a provider, of its executions only the one on that: the others do not run here."""
    data = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    if provider is not None:
        data = {**data, "execution": [execution_for(provider, data)]}
    return Candidate(f"shipped {name}", data, shipped=name)


def baselines(objective: Objective, provider: str) -> list[Candidate]:
    """The shipped profiles that the result must beat, the objective's own first: those with an execution of their own on that provider."""
    named = {name: shipped(name) for name in BASELINES[objective]}
    here = [name for name, one in named.items() if any(execution["provider"] == provider for execution in one.data["execution"])]
    return list({one.id: one for one in (shipped(name, provider) for name in here)}.values())


def space(objective: Objective, facts: Facts, providers: Sequence[str]) -> Space:
    """The space around the shipped profile of the objective, on the provider it runs on; `providers` are those this machine may try."""
    base = shipped(objective, facts.provider)
    own = base.data["execution"][0]
    batching = facts.batched_by
    on_gpu = facts.provider in GPU_PROVIDERS
    knobs = [
        _parallelism(facts.cpus, batching, on_gpu),
        _batch(facts, batching, own.get(batching, {}).get("buckets", [])),
        Knob("precision", {precision: {"execution.0.precision": [precision]} for precision in reversed(facts.precisions)}),
        Knob("spinning", {f"spinning {word}": {f"{SESSION}.allow_spinning": word == "on"} for word in ("on", "off")}),
        Knob("delay", {f"delay {ms} ms": {f"execution.0.{batching}.max_queue_delay_ms": ms} for ms in (2, 5, 1, 0)}),
    ]
    if on_gpu:
        search = "execution.0.provider_options.cudnn_conv_algo_search"
        knobs.append(Knob("convolutions", {f"convolutions {how}": {search: how} for how in ("EXHAUSTIVE", "DEFAULT", "HEURISTIC")}))
    if "cuda_graphs" in own:
        knobs.append(Knob("graphs", {f"graphs {how}": {"execution.0.cuda_graphs": how} for how in ("off", "auto")}))
    if batching == "text_batching":
        tokens = f"execution.0.{batching}.max_batch_tokens"
        knobs.append(Knob("tokens", {f"tokens {count}": {tokens: count} for count in (512, 1024, 256, 2048, 128, 4096, 16384)}))
    others = [provider for provider in providers if provider != facts.provider]
    if others:
        knobs.append(Knob("provider", {provider: {"execution": [execution_for(provider, base.data)]} for provider in others}))
        knobs.insert(0, knobs.pop())  # laid on first: it brings a whole execution, which the other knobs then turn
    return Space(base, tuple(knob for knob in knobs if len(knob.alternatives) > (knob.name != "provider")))


def execution_for(provider: str, data: Mapping[str, Any]) -> Data:
    """The profile's own execution on that provider, else another shipped profile's, else what any provider takes of the first one's."""
    everywhere = [data, *(yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(Path(SHIPPED).glob("*.yaml")))]
    for profile in everywhere:
        for execution in profile.get("execution", ()):
            if execution["provider"] == provider:
                return dict(execution)
    common = ("precision", "session", *SECTIONS)  # the rest belongs to its provider
    return {"provider": provider, **{key: value for key, value in data["execution"][0].items() if key in common}}


def roomy(data: Data) -> Data:
    """The data with queues that hold a whole batch at least, which the schema asks for."""
    for execution in data["execution"]:
        for section in SECTIONS:
            batching = execution.get(section)
            if batching and batching.get("max_batch_size", 1) > batching.get("max_queue_size", 1 << 30):
                batching["max_queue_size"] = batching["max_batch_size"]
    return data


def _parallelism(cpus: int, batching: str, on_gpu: bool) -> Knob:
    """Placement, workers, threads and batches in flight: one is right only with the others."""

    def way(placement: str, workers: int, threads: int | str, in_flight: int) -> tuple[str, Change]:
        where = "" if placement == "in_process" else "separate runner, "
        of_threads = "" if on_gpu else f", threads {threads}"
        change = {"placement": placement, "workers": workers, f"execution.0.{batching}.max_in_flight": in_flight}
        session = {} if on_gpu else {f"{SESSION}.intra_op_num_threads": threads}
        return f"{where}workers {workers}{of_threads}, in flight {in_flight}", {**change, **session}

    half = max(1, cpus // 2)
    if on_gpu:
        several = sorted({2, min(4, cpus), min(8, cpus)})
        ways = [way("in_process", 1, "auto", flight) for flight in (2, 3, 1)]
        ways += [way("separate", workers, "auto", flight) for workers in several for flight in (2, 3)]
    else:
        ways = [
            way("in_process", 1, 1, cpus),  # one thread for each of many batches: most of them together
            way("in_process", 1, "auto", 2),  # the next batch begins while the last one ends
            way("in_process", cpus, 1, 1),  # a process for each CPU: Python itself runs on all of them
            way("separate", 1, "auto", 1),  # decoding and computing in processes of their own
            way("in_process", 2, half, 1),
            way("separate", 2, "auto", 1),
            way("separate", 1, 1, cpus),
            way("in_process", 1, half, 2),
            way("in_process", 2, half, 2),
            way("in_process", 1, "auto", 1),
        ]
    return Knob("parallelism", dict(ways))


def _batch(facts: Facts, batching: str, buckets: Sequence[int]) -> Knob:
    """Sizes up to the one that was verified, those in the middle first. Where the base has buckets they end at the size."""
    sizes = [size for size in (4, 16, 3, 1, 8, 6, 32, 2, 64, 128, 256) if size <= facts.max_batch]
    key = f"execution.0.{batching}"

    def change(size: int) -> Change:
        fitting = [*(bucket for bucket in buckets if bucket < size), size] if buckets else []
        return {f"{key}.max_batch_size": size, f"{key}.buckets": fitting}

    return Knob("batch", {f"batch {size}": change(size) for size in sizes})
