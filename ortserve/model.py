"""A model being served: its package, its task and the engine that answers its rows, and the way of one payload through them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ortserve import images, jpeg, resample
from ortserve.arrivals import Arrivals
from ortserve.cpus import available_cpus
from ortserve.decoding import DecodingThreads
from ortserve.engine import Engine, Place
from ortserve.errors import QueueFull, RequestError, ServingError
from ortserve.manifest import Manifest
from ortserve.profile import Profile
from ortserve.refusal_count import Observer, RefusalCount
from ortserve.tasks import Begins, Task
from ortserve.tasks.row import Row
from ortserve.threads import Threads

if TYPE_CHECKING:
    from ortserve.session import Tensors

T = TypeVar("T")
R = TypeVar("R")

Refusal = RequestError | ServingError  # why a payload has no answer

# A request of more payloads leaves all of them to threads: together they would hold up the event loop, and so its neighbours, for longer
# than the interpreter lets one thread keep it from another.
_FEW = 16


class ModelObserver(Observer, Protocol):
    """What a served model reports; its engine has reports of its own. `metrics.ModelMetrics` is both."""

    def decoded(self, seconds: float) -> None:
        """A payload became tensors in `seconds`."""

    def answered(self, seconds: float) -> None:
        """A payload was answered in `seconds`, from admission to answer."""

    def decode_error(self, reason: str) -> None:
        """A payload could not become tensors; `reason` is the error's code."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One payload's answer and where its time went, in seconds."""

    value: Any
    decode_s: float
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class Inferred:
    """The model's outputs `{name: [rows, ...]}` and where the time went, in seconds."""

    outputs: Tensors
    queue_s: float
    inference_s: float


class ServedModel:
    """Answers payloads of one model. Lives in one process and its event loop; `close` ends its threads."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        version: str,
        task: Task,
        engine: Engine,
        profile: Profile,
        observer: ModelObserver | None = None,
    ) -> None:
        """`engine` answers the rows of `task`, whose model the package of that manifest and version is."""
        self.manifest = manifest
        self.version = version
        self.task = task
        self.engine = engine
        self._observer = observer
        self._refusals = RefusalCount(observer)
        self._arrivals = Arrivals()
        self._timeout_s = profile.limits.request_timeout_ms / 1000
        self._decoder = profile.images.decoder
        self._decoders = _decoders(profile.images.decode_threads)
        self._begins = task if isinstance(task, Begins) else None
        self._quick = _quick(profile.images.decode_threads, pressed=self._refusals.many) if self._begins else None

    @property
    def name(self) -> str:
        """The package's name."""
        return self.manifest.name

    def let_in(self) -> None:
        """Nothing, where one payload will have a place once its body is here: what is refused anyway need not be read. Raises as `predict`.

        `came` is to follow.
        """
        self.expect_room(ahead=len(self._arrivals))
        self._arrivals.expect()

    def refused(self, reason: str, times: int) -> None:
        """So many more were told at their heads what `let_in` raised; `reason` is its code."""
        self._refusals.count(reason, times)

    def came(self) -> None:
        """The body of one that was let in is here, or its sender left."""
        self._arrivals.came()

    def expect_room(self, *, ahead: int = 0) -> None:
        """Nothing, where one payload could have a place now, behind `ahead` others: what is refused anyway need not be taken apart.

        Raises as `predict`.
        """
        with self._refusals:
            self.engine.expect_room(deadline=time.monotonic() + self._timeout_s, ahead=ahead)

    async def predict(self, payloads: Sequence[Any], parameters: Any) -> list[Answer | Refusal]:
        """An answer or an error for each payload, in order; a RequestError among the payloads is its own answer.

        Raises QueueFull where not all of them have a place, PayloadTooLarge where they never can: none is computed then.
        """
        deadline = time.monotonic() + self._timeout_s
        with ExitStack() as places:
            with self._refusals:
                taken = [places.enter_context(place) for place in self.engine.admit(len(payloads), deadline=deadline)]
            step, few = self.task.payloads_per_job, len(payloads) <= _FEW
            jobs = [
                self._job(taken[start : start + step], payloads[start : start + step], parameters, few=few)
                for start in range(0, len(payloads), step)
            ]
            answers = await jobs[0] if len(jobs) == 1 else [answer for answers in await asyncio.gather(*jobs) for answer in answers]
        refusals = [answer for answer in answers if isinstance(answer, QueueFull)]
        if refusals and len(refusals) == len(answers):
            raise refusals[0]  # of an engine elsewhere, whose queue was fuller than was known here
        return answers

    async def infer(self, inputs: Tensors, rows: int, *, within_s: float | None = None) -> Inferred:
        """The model's own outputs for tensors of so many rows, by the way that payloads go; within the profile's limit, or a shorter one.

        Raises as `Engine.admit_together` and `Place.infer`.
        """
        started = time.perf_counter()
        allowed_s = self._timeout_s if within_s is None else min(within_s, self._timeout_s)
        with self._refusals, self.engine.admit_together(rows, deadline=time.monotonic() + allowed_s) as place:
            outputs = await place.infer(inputs)
        waited = time.perf_counter() - started
        if self._observer:
            self._observer.answered(waited)
        return Inferred(outputs, waited - place.inference_s, place.inference_s)

    async def aside(self, function: Callable[[T], R], value: T) -> R:
        """`function(value)` in one of the model's decoding threads: for what would hold the event loop up."""
        return await self._decoders.run(function, value)

    def parsed(self, seconds: float) -> None:
        """Tell the observer that a request's bytes became tensors in that time."""
        if self._observer:
            self._observer.decoded(seconds)

    def unusable(self, error: RequestError) -> None:
        """Tell the observer why a request's bytes could not become tensors."""
        if self._observer:
            self._observer.decode_error(error.code)

    async def _job(self, places: Sequence[Place], payloads: Sequence[Any], parameters: Any, *, few: bool) -> list[Answer | Refusal]:
        """The answers to payloads that share one hop to a decoding thread."""
        started = time.perf_counter()
        prepared = await self._prepared(payloads, parameters, few=few)
        decode_s = time.perf_counter() - started
        if self._observer:
            for payload, row in zip(payloads, prepared, strict=True):
                if isinstance(row, RequestError) and row is not payload:
                    self._observer.decode_error(row.code)
        answers = [self._answer(place, row, parameters, started, decode_s) for place, row in zip(places, prepared, strict=True)]
        return [await answers[0]] if len(answers) == 1 else await asyncio.gather(*answers)

    async def _prepared(self, payloads: Sequence[Any], parameters: Any, *, few: bool) -> list[Row | RequestError]:
        """A row or an error for each payload; of one alone at once, where it is soon made and one of `few`, or by the threads it is for."""
        if self._begins and len(payloads) == 1 and not isinstance(payloads[0], RequestError):
            if few and self._begins.soon(payloads[0]):
                return self._prepare(payloads, parameters)
            if self._quick:
                try:
                    begun = self._begins.begin(payloads[0], parameters)
                except RequestError as error:
                    return [error]
                if begun and (pixels := await self._quick.run(begun.job)) is not None:
                    return [begun.row(pixels)]
        return await self._decoders.run(self._prepare, payloads, parameters)

    def _prepare(self, payloads: Sequence[Any], parameters: Any) -> list[Row | RequestError]:
        rows: list[Row | RequestError] = []
        for payload in payloads:
            try:
                rows.append(payload if isinstance(payload, RequestError) else self.task.preprocess(payload, parameters))
            except RequestError as error:
                rows.append(error)
        return rows

    async def _answer(self, place: Place, row: Row | RequestError, parameters: Any, started: float, decode_s: float) -> Answer | Refusal:
        if isinstance(row, RequestError):
            return row
        queued = time.perf_counter()
        try:
            with self._refusals, place:
                outputs = await place.infer(row.tensors)
                waited = time.perf_counter() - queued
                value = self.task.postprocess(outputs, row, parameters)
        except (RequestError, ServingError) as error:
            return error
        if self._observer:  # hears of it behind the answer: one that is alone goes out in this turn of the loop
            soon = asyncio.get_running_loop().call_soon
            soon(self._observer.decoded, decode_s)
            soon(self._observer.answered, time.perf_counter() - started)
        return Answer(value, decode_s, waited - place.inference_s, place.inference_s)

    async def close(self) -> None:
        """Answer what was admitted, then end the threads."""
        await self.engine.close()
        self._decoders.close()
        if self._quick:
            self._quick.close()

    def facts(self) -> Mapping[str, Any]:
        """What `GET /models/{name}` shows: the manifest, and what its engine really runs."""
        how = self.manifest.preprocessing
        return {
            "name": self.name,
            "version": self.version,
            **self.engine.facts(),
            **({"jpeg_decode": images.jpeg_way(how, self._decoder), "resize": resample.way().name} if how else {}),
            "manifest": self.manifest.model_dump(mode="json"),
        }


def _decoders(wanted: int | Literal["auto"]) -> Threads:
    """As many threads as wanted; auto: a CPU is the event loop's, unless the pictures are large."""
    count = _count(wanted)
    return Threads(count, "decode", on_call=available_cpus() - count if wanted == "auto" else 0)


def _quick(wanted: int | Literal["auto"], *, pressed: Callable[[], bool]) -> DecodingThreads | None:
    """As many threads that do not want the interpreter, where there can be such; they sleep where they are given nothing."""
    return DecodingThreads(_count(wanted), pressed=pressed) if jpeg.way().name == "compiled" and DecodingThreads.possible() else None


def _count(wanted: int | Literal["auto"]) -> int:
    return max(1, available_cpus() - 1) if wanted == "auto" else wanted
