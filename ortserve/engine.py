"""What answers rows: a place for each, and the model's outputs. `local_engine.py` has it in this process, `remote_engine.py` in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ortserve.execution import Batching
    from ortserve.session import Tensors


class Place(Protocol):
    """The place of a row in the queue, or of several together, until their deadline. A context manager: leaving gives it back."""

    @property
    def inference_s(self) -> float:
        """Seconds the session took for the batches with its rows; 0 before there is an answer."""
        ...

    async def infer(self, inputs: Tensors) -> Tensors:
        """Outputs `{name: [rows, ...]}` for inputs `{name: [rows, ...]}`. Once for a place. Raises RequestError and ServingError."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...


class Engine(Protocol):
    """An open session behind a batcher, wherever it is. Belongs to one event loop; `close` answers what was admitted."""

    @property
    def batching(self) -> Batching:
        """The batcher's settings, cut to what the package was verified at."""
        ...

    @property
    def available(self) -> bool:
        """Whether rows can be answered now."""
        ...

    async def start(self) -> None:
        """Nothing, once rows can be admitted. To be awaited in the event loop that admits."""
        ...

    def admit(self, rows: int, *, deadline: float) -> Sequence[Place]:
        """A place for each of so many rows, all or none, to be answered before `deadline` (`time.monotonic()` seconds).

        Raises QueueFull, with the time the queue needs to drain; PayloadTooLarge where they can never fit; ShuttingDown; RunnerUnavailable.
        """
        ...

    def admit_together(self, rows: int, *, deadline: float) -> Place:
        """One place for so many rows, whose inputs come as whole tensors. Raises as `admit`."""
        ...

    def expect_room(self, *, deadline: float, ahead: int = 0) -> None:
        """Nothing, where one row could be admitted now, behind `ahead` others, and answered before `deadline`, as far as is known here.

        Raises QueueFull, ShuttingDown, RunnerUnavailable.
        """
        ...

    def stay(self) -> None:
        """This process was told to end: what answers its rows now is to do so until `close`."""
        ...

    async def close(self) -> None:
        """Nothing, once every admitted row is answered."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What really runs: provider, precision, batching, session options, the process."""
        ...
