"""The door: who would find no place is told so at the head of a request, before its body is read.

For whoever owns the connection (`connection.py`): what refusing takes is taken from those who were let in, and it takes least there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from ortserve import logs
from ortserve.errors import QueueFull, ServingError
from ortserve.http1 import head_of, plain_request, whole_reply
from ortserve.replies import Reply, error_reply, error_shape, log_failure, passed_over

if TYPE_CHECKING:
    from ortserve.metrics import Metrics

# Past capacity a queue is full again as soon as a place is free, and refusals are most of what the event loop does. So one for want of room
# is told to everybody who asks for the same within this share of the time in which the queue drains, and within these seconds.
STANDS_SHARE = 0.01
STANDS_S = 0.005


class Gate(Protocol):
    """Who says whether there is a place. `ServedModel` is one."""

    def let_in(self) -> None:
        """Nothing, where one request will have a place once its body is here. Raises a ServingError, counted as a refusal, where not."""

    def refused(self, reason: str, times: int) -> None:
        """So many others were told the same; `reason` is the error's code."""


GateOf = Callable[[str, str], tuple[str, Gate] | None]  # of method and path; with the template of the route that has it. None: nobody


@dataclass(slots=True)
class _Standing:
    """A refusal, and how many were told it after the first."""

    gate: Gate
    endpoint: str
    reason: str  # the error's code
    reply: Reply
    head: bytes  # of the reply, as `http1.head_of` has it
    around_id: list[bytes]  # the reply's body, but for the request id
    seconds: float  # that the first one took
    until: float  # `time.monotonic()` seconds
    fall: asyncio.TimerHandle
    told: int = 0

    @property
    def stands(self) -> bool:
        """Whether it still does: its timer comes late where the loop is busy."""
        return time.monotonic() < self.until

    def body(self, request_id: str) -> bytes:
        """What one more is told, and counted with."""
        self.told += 1
        return request_id.encode().join(self.around_id)


class Door:
    """Refuses in place of the routes whose gate says so. In the event loop's thread alone."""

    def __init__(self, gate_of: GateOf, metrics: Metrics, *, access_log: bool) -> None:
        self._gate_of = gate_of
        self._metrics = metrics
        self._access_log = access_log
        self.standing: dict[tuple[str, str], _Standing] = {}  # by method and path: of paths that have a gate, and so of no others

    def told_again(self, data: bytes) -> tuple[bytes, int] | None:
        """What is sent at once to the request that `data` begins with, and the bytes of its head and body; None: it has to be parsed.

        Most of what comes past capacity is this, and it takes less than by way of `turned_away`.
        """
        request = plain_request(data)
        standing = None if request is None else self.standing.get((request.method, request.path))
        if request is None or standing is None or not standing.stands:
            return None
        request_id = logs.valid_or_new(request.request_id)
        return whole_reply(standing.head, standing.body(request_id), request_id.encode(), last=False), request.size

    def turned_away(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> tuple[Reply, str] | None:
        """What is answered, with which request id, to a request that would find no place; None: let it in."""
        standing = self.standing.get((method, path))
        if standing is not None:
            if standing.stands:
                request_id = logs.request_id_of(headers)
                return replace(standing.reply, body=standing.body(request_id)), request_id
            self._fall(method, path)
        found = self._gate_of(method, path)
        if found is None:
            return None
        endpoint, gate = found
        started = time.perf_counter()
        try:
            gate.let_in()
        except ServingError as error:  # handled here: kept past its clause, error and frame would hold each other until the collector comes
            request_id = logs.request_id_of(headers)
            token = logs.request_id.set(request_id)
            try:
                log_failure(endpoint, error)
                reply = error_reply(error, error_shape(path))
                seconds = time.perf_counter() - started
                self._metrics.request_refused(endpoint, reply.status, seconds)
                if self._access_log:  # each has a line of its own, so none stands
                    logs.access(method=method, endpoint=endpoint, status=reply.status, seconds=seconds, sent_bytes=len(reply.body))
                elif isinstance(error, QueueFull):
                    self._stand(method, path, gate, endpoint, error, seconds)
            finally:
                logs.request_id.reset(token)
            return reply, request_id
        return None

    def _stand(self, method: str, path: str, gate: Gate, endpoint: str, error: QueueFull, seconds: float) -> None:
        mark = logs.new_request_id()  # random, so that no word of the message is taken for it
        logs.request_id.set(mark)
        reply = error_reply(error, error_shape(path))
        around_id = reply.body.split(mark.encode())
        stands_s = min(STANDS_S, STANDS_SHARE * error.retry_after_s)
        # At its end; or, where somebody asks later than that, before.
        fall = asyncio.get_running_loop().call_later(stands_s, self._fall, method, path)
        until = time.monotonic() + stands_s
        self.standing[method, path] = _Standing(gate, endpoint, error.code, reply, head_of(reply), around_id, seconds, until, fall)

    def _fall(self, method: str, path: str) -> None:
        """What stood there stands no longer, and all who were told it are counted."""
        standing = self.standing.pop((method, path))
        standing.fall.cancel()
        if standing.told:
            self._metrics.request_refused(standing.endpoint, standing.reply.status, standing.seconds, standing.told)
            standing.gate.refused(standing.reason, standing.told)
            passed_over(standing.told)
