"""The engine in this process: one session of a package, warm, on a confirmed provider, behind its batcher."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort
import psutil

from ortserve import providers, refusals, tensorrt
from ortserve.batching import Batcher, Observer, Ticket
from ortserve.cpus import available_cpus
from ortserve.errors import GraphRefused, ModelError, ProviderError, StartupError
from ortserve.execution import GPU_PROVIDERS, Batching, Execution
from ortserve.manifest import Manifest, Precision
from ortserve.profile import Profile
from ortserve.session import Runs, Session

logger = logging.getLogger("ortserve.local_engine")

# CPU seconds of a row: of less, more threads save hardly what HTTP costs a caller, and waking them costs the others as much.
BRIEF_S = 0.001


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

    `text_batching` stands in it only where it is that one, `brief_batching` where it may become that (`open_session`).
    On a CPU no more batches are in flight than there are CPUs: one more would only make the others late. Rows of any length have no end
    of shapes, and ONNX Runtime would keep a memory pattern for each (22 KiB measured, and no faster).
    """

    def cut(batching: Batching) -> Batching:
        limit = min(batching.max_batch_size, manifest.max_batch)
        buckets = tuple(sorted({min(size, limit) for size in batching.buckets}))
        flights = min(batching.max_in_flight, available_cpus()) if execution.provider == "CPUExecutionProvider" else batching.max_in_flight
        return batching.model_copy(update={"max_batch_size": limit, "buckets": buckets, "max_in_flight": flights})

    ragged = any(isinstance(dim, str) for spec in manifest.inputs for dim in spec.shape[1:])
    text, brief = (execution.text_batching, None) if ragged else (None, execution.brief_batching)
    session = execution.session.model_copy(update={"enable_mem_pattern": False}) if ragged else execution.session
    options = execution.provider_options
    if execution.memory_limit_bytes is not None and execution.provider in GPU_PROVIDERS:
        options = {**options, "gpu_mem_limit": execution.memory_limit_bytes}  # the device's; the machine's is looked at in LocalEngine.open
    graphs = "off" if ragged else execution.cuda_graphs  # a graph for each number of rows and each length would be no end of them
    return execution.model_copy(
        update={
            "batching": cut(text or execution.batching),
            "text_batching": text,
            "brief_batching": brief and cut(brief),
            "session": session,
            "provider_options": options,
            "cuda_graphs": graphs,
        }
    )


def open_session(folder: Path, manifest: Manifest, execution: Execution, outputs: Sequence[str]) -> tuple[Session, Execution]:
    """The session of a package under a `fitted` execution: file checked against its sha256, provider confirmed, warmed at its sizes.

    And the execution it runs under: there `brief_batching` stands only where it is what the rows are batched by. Where `cuda_graphs: auto`
    meets a model that cannot be captured, the log says why and it runs without; a model whose rows cost next to nothing runs `_briefly`.
    """
    precision = choose_precision(manifest, execution)
    path = manifest.verified_path(folder, precision)
    if execution.provider == "TensorrtExecutionProvider":
        providers.prepare(execution.provider)  # the folder of its engine is named after the library's version
        execution = tensorrt.prepared(execution, manifest, precision)
    try:
        session = _warm(path, manifest, execution, outputs)
    except GraphRefused as error:
        if execution.cuda_graphs == "required":
            raise GraphRefused(f"model {manifest.name}: {error}") from error
        logger.warning("model %s runs without CUDA graphs: %s", manifest.name, error)
        execution = execution.model_copy(update={"cuda_graphs": "off"})
        session = _warm(path, manifest, execution, outputs)
    brief = _briefly(execution, session.intra_op_num_threads)
    if brief == execution or not _is_brief(session):
        return session, execution.model_copy(update={"brief_batching": None})
    del session  # or both would be in memory at once
    session = _warm(path, manifest, brief, outputs)
    logger.info(
        "model %s: a row takes less than %g ms of CPU time: batches of up to %d rows, %d in flight, threads: %d",
        *(manifest.name, BRIEF_S * 1000, brief.batching.max_batch_size, brief.batching.max_in_flight, session.intra_op_num_threads),
    )
    return session, brief


def _briefly(execution: Execution, threads: int) -> Execution:
    """The execution of a model whose row takes less than BRIEF_S, which has that many `threads`.

    It is batched as `brief_batching` says. Where `intra_op_num_threads: auto` would give every batch in flight all CPUs it has one, and
    its batches leave the event loop a CPU: past capacity that has to keep up with whom it refuses.
    """
    batching, session = execution.brief_batching or execution.batching, execution.session
    if session.intra_op_num_threads == "auto" and 1 < threads <= batching.max_in_flight:
        session = session.model_copy(update={"intra_op_num_threads": 1})
        batching = batching.model_copy(update={"max_in_flight": batching.max_in_flight - 1})
    return execution.model_copy(update={"batching": batching, "session": session})


def _is_brief(session: Session) -> bool:
    """Whether a row is computed in less than BRIEF_S of CPU time; never on a GPU, never of texts, which have any length."""
    if session.device_id is not None or session.ragged:
        return False
    for _ in range(3):  # the process may have had something else to do
        before_s = time.process_time()
        session.warm_up([1])
        used_s = time.process_time() - before_s
        if used_s < BRIEF_S:
            return True
        if used_s > 10 * BRIEF_S:  # whatever else it did
            return False
    return False


def _warm(path: Path, manifest: Manifest, execution: Execution, outputs: Sequence[str]) -> Session:
    session = Session.open(path, execution, outputs=outputs)
    if session.inputs != manifest.inputs:
        raise ModelError(f"model {manifest.name}: {path.name} takes other inputs than its manifest says: build it again")
    batching = execution.batching
    lengths = batching.sequence_buckets if batching.buckets else batching.sequence_buckets[:1]
    sizes = batching.buckets or sorted({1, batching.max_batch_size})
    try:
        session.warm_up(sizes, lengths or (1,))
    except StartupError:
        raise
    except Exception as error:  # of ONNX Runtime's family, which shares no base
        said = f"model {manifest.name} cannot run batches of {sizes} rows on {session.provider} ({' '.join(str(error).split())})"
        if session.provider == "CPUExecutionProvider":
            raise ModelError(f"{said}: lower max_batch_size, or build it again") from error
        raise ProviderError(f"{said}: lower max_batch_size or buckets, mend its libraries, or choose another provider") from error
    return session


def host_memory_bytes() -> int:
    """What this process has in memory now."""
    resident: int = psutil.Process().memory_info().rss
    return resident


def _expect_within_limit(manifest: Manifest, session: Session, execution: Execution, before_bytes: int) -> None:
    """Run as many of the largest batches at once as there may be, then look: ModelError where the model took more than it may."""
    limit, batching = execution.memory_limit_bytes, execution.batching
    if limit is None or execution.provider in GPU_PROVIDERS:  # there the device's own arena keeps to it
        return
    rows, longest = batching.max_batch_size, 1
    if session.ragged and manifest.tokenization is not None:
        longest = manifest.tokenization.max_tokens
        rows = max(1, min(rows, (batching.max_batch_tokens or rows * longest) // longest))
    with ThreadPoolExecutor(batching.max_in_flight) as at_once:
        list(at_once.map(lambda _: session.warm_up([rows], [longest]), range(batching.max_in_flight)))
    if (taken := host_memory_bytes() - before_bytes) > limit:
        raise ModelError(
            f"model {manifest.name} takes {taken} bytes of memory with its largest batches ({batching.max_in_flight} of {rows} rows), "
            f"expected at most memory_limit_bytes ({limit}): raise that, or lower max_batch_size, max_batch_tokens or max_in_flight"
        )


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
        before_bytes = host_memory_bytes()
        session, execution = open_session(folder, manifest, execution, outputs)
        batching = execution.batching
        _expect_within_limit(manifest, session, execution, before_bytes)
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
            "cuda_graphs": session.cuda_graphs,
            "precision": precision,
            "sha256": manifest.variants[precision].sha256,
            "batching": batching.model_dump(mode="json"),
            "batched_by": next((name for name in ("text_batching", "brief_batching") if getattr(execution, name)), "batching"),
            "session": {**execution.session.model_dump(mode="json"), "intra_op_num_threads": session.intra_op_num_threads},
            "host_memory_bytes": host_memory_bytes() - before_bytes,
            "memory_limit_bytes": execution.memory_limit_bytes,
            "device_id": session.device_id,
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

    def admit_together(self, rows: int, *, deadline: float) -> Ticket:
        """As `Engine.admit_together`: the batcher takes the rows as they are, and cuts them only where they are more than a batch."""
        if rows > (limit := self.batching.max_queue_size):
            raise refusals.too_many(rows, limit)
        return self._batcher.admit(rows, deadline=deadline)

    def expect_room(self, *, deadline: float, ahead: int = 0) -> None:
        """As `Engine.expect_room`."""
        self._batcher.expect_room(1, deadline=deadline, ahead=ahead)

    def stay(self) -> None:
        """Nothing: it is here."""

    async def close(self) -> None:
        """Nothing, once every admitted row is answered and the threads have ended."""
        await self._batcher.close()

    def facts(self) -> Mapping[str, Any]:
        """As `Engine.facts`."""
        return self._facts
