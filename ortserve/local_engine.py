"""The engine in this process: one session of a package, warm, on a confirmed provider, behind its batcher."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort

from ortserve import refusals
from ortserve.batching import Batcher, Observer, Ticket
from ortserve.cpus import available_cpus
from ortserve.errors import ModelError
from ortserve.manifest import Manifest, Precision
from ortserve.profile import Batching, Execution, Profile
from ortserve.session import Runs, Session


class EngineObserver(Observer, Protocol):
    """What an engine reports beside its batcher's reports; `metrics.ModelMetrics` is one."""

    def opened(self, *, queue_rows: int, batch_rows: int, slots: int, p99_target_s: float, wanted: str, provider: str) -> None:
        """The model is open: its batcher's bounds, what its answers aim at, the provider the profile wanted and the one it has."""


def onnxruntime_version() -> str:
    """The version of ONNX Runtime that runs the models."""
    version: str = ort.__version__
    return version


def wanted_provider(profile: Profile) -> str:
    """The profile's first provider that this build of ONNX Runtime has, whether or not this machine has the device.

    A CPU build cannot fall back from a GPU; a CUDA build on a machine whose driver is gone does.
    """
    built = ort.get_available_providers()
    return next((execution.provider for execution in profile.execution if execution.provider in built), profile.execution[0].provider)


def choose_precision(manifest: Manifest, execution: Execution) -> Precision:
    """The first precision of the profile's execution that the package holds. ModelError where it holds none of them."""
    for precision in execution.precision:
        if precision in manifest.variants:
            return precision
    raise ModelError(
        f"profile asks {execution.provider} for {' or '.join(execution.precision)}, but the package {manifest.name} holds only "
        f"{', '.join(manifest.variants)}: build it with --precision {execution.precision[0]}, or choose another profile"
    )


def fitted(manifest: Manifest, execution: Execution) -> Execution:
    """The execution as this model runs under it: the batching of rows like its own, cut to the largest batch it was verified at.

    On a CPU no more batches are in flight than there are CPUs: one more would only make the others late. Rows of any length have no end
    of shapes, and ONNX Runtime would keep a memory pattern for each (22 KiB measured, and no faster).
    """
    ragged = any(isinstance(dim, str) for spec in manifest.inputs for dim in spec.shape[1:])
    batching = execution.text_batching if ragged and execution.text_batching is not None else execution.batching
    limit = min(batching.max_batch_size, manifest.max_batch)
    buckets = tuple(sorted({min(size, limit) for size in batching.buckets}))
    session = execution.session.model_copy(update={"enable_mem_pattern": False}) if ragged else execution.session
    flights = min(batching.max_in_flight, available_cpus()) if execution.provider == "CPUExecutionProvider" else batching.max_in_flight
    cut = batching.model_copy(update={"max_batch_size": limit, "buckets": buckets, "max_in_flight": flights})
    return execution.model_copy(update={"batching": cut, "session": session})


def open_session(folder: Path, manifest: Manifest, execution: Execution, outputs: Sequence[str]) -> Session:
    """The session of a package under a `fitted` execution: file checked against its sha256, provider confirmed, warmed at its sizes."""
    precision = choose_precision(manifest, execution)
    session = Session.open(manifest.verified_path(folder, precision), execution, outputs=outputs)
    if session.inputs != manifest.inputs:
        raise ModelError(f"model {manifest.name}: the {precision} file takes other inputs than its manifest says: build it again")
    batching = execution.batching
    lengths = batching.sequence_buckets if batching.buckets else batching.sequence_buckets[:1]
    session.warm_up(batching.buckets or sorted({1, batching.max_batch_size}), lengths or (1,))
    return session


class LocalEngine:
    """`ortserve.engine.Engine` around a session, or whatever runs in its place, in this process."""

    available = True  # a session that is open stays so

    def __init__(
        self, runs: Runs, batching: Batching, *, facts: Mapping[str, Any], ragged: Collection[str] = (), observer: Observer | None = None
    ) -> None:
        self.batching = batching
        self._batcher = Batcher(runs, batching, ragged=ragged, observer=observer)
        self._facts = facts

    @classmethod
    def open(
        cls,
        folder: Path,
        manifest: Manifest,
        *,
        outputs: Sequence[str],
        profile: Profile,
        execution: Execution,
        observer: EngineObserver | None = None,
    ) -> LocalEngine:
        """The engine of the package in `folder`, warm. Raises StartupError where it cannot serve as the profile says."""
        precision = choose_precision(manifest, execution)
        execution = fitted(manifest, execution)
        batching = execution.batching
        session = open_session(folder, manifest, execution, outputs)
        if observer:
            observer.opened(
                queue_rows=batching.max_queue_size,
                batch_rows=batching.max_batch_size,
                slots=batching.max_in_flight,
                p99_target_s=profile.p99_target_ms / 1000,
                wanted=wanted_provider(profile),
                provider=session.provider,
            )
        facts = {
            "provider": session.provider,
            "nodes_by_provider": session.nodes_by_provider(),
            "precision": precision,
            "sha256": manifest.variants[precision].sha256,
            "batching": batching.model_dump(mode="json"),
            "session": execution.session.model_dump(mode="json"),
            "cpus": available_cpus(),
            "pid": os.getpid(),
        }
        return cls(session, batching, facts=facts, ragged=session.ragged, observer=observer)

    @property
    def rows_waiting(self) -> int:
        """Rows admitted and not yet started."""
        return self._batcher.rows_waiting

    @property
    def drain_s(self) -> float:
        """Seconds the queue needs to drain, by recent batches."""
        return self._batcher.drain_s

    async def start(self) -> None:
        """Nothing: it was opened warm."""

    def admit(self, rows: int, *, deadline: float) -> Sequence[Ticket]:
        """As `Engine.admit`."""
        if rows > (limit := self.batching.max_queue_size):
            raise refusals.too_many(rows, limit)
        with ExitStack() as places:
            tickets = [places.enter_context(self._batcher.admit(1, deadline=deadline)) for _ in range(rows)]
            places.pop_all()  # all have a place: they are the caller's
        return tickets

    def expect_room(self) -> None:
        """As `Engine.expect_room`."""
        self._batcher.expect_room(1)

    def stay(self) -> None:
        """Nothing: it is here."""

    async def close(self) -> None:
        """Nothing, once every admitted row is answered and the threads have ended."""
        await self._batcher.close()

    def facts(self) -> Mapping[str, Any]:
        """As `Engine.facts`."""
        return self._facts
