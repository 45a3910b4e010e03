"""A model being served: its package, its session, its batcher and its task, and the way of one payload through them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort

from ortserve import tasks
from ortserve.batching import Batcher, Observer, Ticket
from ortserve.cpus import available_cpus
from ortserve.errors import ModelError, PayloadTooLarge, RequestError, ServingError
from ortserve.manifest import Manifest, Precision
from ortserve.profile import Execution, Profile
from ortserve.session import Session
from ortserve.tasks.row import Row

Refusal = RequestError | ServingError  # why a payload has no answer


class ModelObserver(Observer, Protocol):
    """What a served model reports beside its batcher's reports; `metrics.ModelMetrics` is one."""

    def opened(self, *, queue_rows: int, batch_rows: int, slots: int, p99_target_s: float, wanted: str, provider: str) -> None:
        """The model is open: its batcher's bounds, what its answers aim at, the provider the profile wanted and the one it has."""

    def decoded(self, seconds: float) -> None:
        """A payload became tensors in `seconds`."""

    def answered(self, seconds: float) -> None:
        """A payload was answered in `seconds`, from admission to answer."""

    def decode_error(self, reason: str) -> None:
        """A payload could not become tensors; `reason` is the error's code."""

    def refused(self, reason: str) -> None:
        """A payload was not answered; `reason` is the error's code."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One payload's answer and where its time went, in seconds."""

    value: Any
    decode_s: float
    queue_s: float
    inference_s: float


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

    Rows of any length have no end of shapes, and ONNX Runtime would keep a memory pattern for each (22 KiB measured, and no faster).
    """
    ragged = any(isinstance(dim, str) for spec in manifest.inputs for dim in spec.shape[1:])
    batching = execution.text_batching if ragged and execution.text_batching is not None else execution.batching
    limit = min(batching.max_batch_size, manifest.max_batch)
    buckets = tuple(sorted({min(size, limit) for size in batching.buckets}))
    session = execution.session.model_copy(update={"enable_mem_pattern": False}) if ragged else execution.session
    cut = batching.model_copy(update={"max_batch_size": limit, "buckets": buckets})
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


class ServedModel:
    """Answers payloads of one model. Lives in one process and its event loop; `close` ends its threads."""

    def __init__(
        self,
        *,
        folder: Path,
        version: str,
        profile: Profile,
        execution: Execution,
        observer: ModelObserver | None = None,
    ) -> None:
        """Open the package in `folder`, warmed and ready. Raises StartupError where it cannot serve as the profile says."""
        self.manifest = Manifest.read(folder)
        self.version = version
        self.execution = fitted(self.manifest, execution)
        self.batching = self.execution.batching
        self.precision = choose_precision(self.manifest, execution)
        self.task = tasks.load(self.manifest, folder, profile)
        self.session = open_session(folder, self.manifest, self.execution, self.task.outputs)
        self.batcher = Batcher(self.session, self.batching, ragged=self.session.ragged, observer=observer)
        self._observer = observer
        self._timeout_s = profile.limits.request_timeout_ms / 1000
        wanted = profile.images.decode_threads
        self._decoders = ThreadPoolExecutor(available_cpus() if wanted == "auto" else wanted, thread_name_prefix="decode")
        if observer:
            observer.opened(
                queue_rows=self.batching.max_queue_size,
                batch_rows=self.batching.max_batch_size,
                slots=self.batching.max_in_flight,
                p99_target_s=profile.p99_target_ms / 1000,
                wanted=wanted_provider(profile),
                provider=self.session.provider,
            )

    @property
    def name(self) -> str:
        """The package's name."""
        return self.manifest.name

    async def predict(self, payloads: Sequence[Any], parameters: Any) -> list[Answer | Refusal]:
        """An answer or an error for each payload, in order; a RequestError among the payloads is its own answer.

        Raises QueueFull where not all of them have a place, PayloadTooLarge where they never can: none is computed then.
        """
        if len(payloads) > (limit := self.batching.max_queue_size):
            raise PayloadTooLarge(f"expected at most {limit} in one request, got {len(payloads)}: send several requests")
        deadline = time.monotonic() + self._timeout_s
        with ExitStack() as places:
            with self._counting_refusals():
                tickets = [places.enter_context(self.batcher.admit(1, deadline=deadline)) for _ in payloads]
            step = self.task.payloads_per_job
            jobs = [
                self._job(tickets[start : start + step], payloads[start : start + step], parameters)
                for start in range(0, len(payloads), step)
            ]
            return await jobs[0] if len(jobs) == 1 else [answer for answers in await asyncio.gather(*jobs) for answer in answers]

    async def _job(self, tickets: Sequence[Ticket], payloads: Sequence[Any], parameters: Any) -> list[Answer | Refusal]:
        """The answers to payloads that share one hop to a decoding thread."""
        started = time.perf_counter()
        prepared = await asyncio.get_running_loop().run_in_executor(self._decoders, self._prepare, payloads, parameters)
        decode_s = time.perf_counter() - started
        if self._observer:
            for payload, row in zip(payloads, prepared, strict=True):
                if isinstance(row, RequestError) and row is not payload:
                    self._observer.decode_error(row.code)
        answers = [self._answer(ticket, row, parameters, started, decode_s) for ticket, row in zip(tickets, prepared, strict=True)]
        return [await answers[0]] if len(answers) == 1 else await asyncio.gather(*answers)

    def _prepare(self, payloads: Sequence[Any], parameters: Any) -> list[Row | RequestError]:
        rows: list[Row | RequestError] = []
        for payload in payloads:
            try:
                rows.append(payload if isinstance(payload, RequestError) else self.task.preprocess(payload, parameters))
            except RequestError as error:
                rows.append(error)
        return rows

    async def _answer(self, ticket: Ticket, row: Row | RequestError, parameters: Any, started: float, decode_s: float) -> Answer | Refusal:
        if isinstance(row, RequestError):
            return row
        queued = time.perf_counter()
        try:
            with self._counting_refusals(), ticket:
                outputs = await ticket.infer(row.tensors)
                waited = time.perf_counter() - queued
                value = self.task.postprocess(outputs, row, parameters)
        except (RequestError, ServingError) as error:
            return error
        if self._observer:
            self._observer.decoded(decode_s)
            self._observer.answered(time.perf_counter() - started)
        return Answer(value, decode_s, waited - ticket.inference_s, ticket.inference_s)

    def _counting_refusals(self) -> _CountRefusals:
        return _CountRefusals(self._observer)

    async def close(self) -> None:
        """Answer what was admitted, then end the threads."""
        await self.batcher.close()
        self._decoders.shutdown()

    def facts(self) -> Mapping[str, Any]:
        """What `GET /models/{name}` shows: the manifest, and what this process really runs."""
        return {
            "name": self.name,
            "version": self.version,
            "provider": self.session.provider,
            "nodes_by_provider": self.session.nodes_by_provider(),
            "precision": self.precision,
            "sha256": self.manifest.variants[self.precision].sha256,
            "batching": self.batching.model_dump(mode="json"),
            "session": self.execution.session.model_dump(mode="json"),
            "cpus": available_cpus(),
            "pid": os.getpid(),
            "manifest": self.manifest.model_dump(mode="json"),
        }


class _CountRefusals:
    """Reports a ServingError that passes through it."""

    def __init__(self, observer: ModelObserver | None) -> None:
        self._observer = observer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._observer and isinstance(error, ServingError):
            self._observer.refused(error.code)
