"""The order in which requests start: first in, first out, with turns, so that a huge one does not starve the small ones behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ortserve.batch import Part, Request


class FairQueue:
    """Requests that have rows to start.

    A request no larger than a batch is served strictly in its order. A larger one has turns of `max_batch_size` rows and goes to the end
    after each: it costs those behind it one batch, not all of its own, and still gets a whole batch in each round. Round robin with a
    quantum, after Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995.
    """

    def __init__(self, max_batch_size: int, max_batch_tokens: int | None = None) -> None:
        self.rows = 0  # not yet started
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens  # of ragged rows, padding included; a longer row runs alone
        self._requests: deque[Request] = deque()

    def __bool__(self) -> bool:
        return bool(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def append(self, request: Request) -> None:
        """Queue a request that has rows to start."""
        self._requests.append(request)
        self.rows += request.rows - request.started

    def remove(self, request: Request) -> int:
        """How many rows of it had not started; they never will. 0 where all had."""
        rows = request.rows - request.started
        if rows:
            self._requests.remove(request)  # linear, but in C and over max_queue_size requests at most
            self.rows -= rows
            request.started = request.rows
        return rows

    def take(self, free_slots: int) -> list[Part]:
        """The parts of the next batch, all of one kind: ceil(rows / free_slots) rows at most, and no more rows or tokens than a batch holds.

        The first request decides the kind; those of another kind are passed over and keep their place, so that none waits for ever.
        """
        room = min(self._max_batch_size, -(-self.rows // free_slots))
        parts: list[Part] = []
        passed: list[Request] = []
        while room and self._requests:
            request = self._requests.popleft()
            if parts and request.kind != parts[0].request.kind:
                passed.append(request)
                continue
            if not parts and request.bound and self._max_batch_tokens is not None:
                room = max(1, min(room, self._max_batch_tokens // request.bound))
            rows = min(room, request.rows - request.started, request.turn)
            parts.append(Part(request, request.started, request.started + rows))
            request.started += rows
            request.turn -= rows
            room -= rows
            self.rows -= rows
            if request.started < request.rows and request.turn:
                self._requests.appendleft(request)
            elif request.started < request.rows:
                request.turn = self._max_batch_size
                self._requests.append(request)
        self._requests.extendleft(reversed(passed))
        return parts
