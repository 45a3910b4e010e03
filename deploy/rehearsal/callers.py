"""Callers in a closed loop that count everything: what was answered, with which status, by which version, and what was lost."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: when it was sent and done with (`time.monotonic()`), what came of it, and the version that answered."""

    begun: float
    ended: float
    outcome: str  # the HTTP status, or the name of what broke the connection
    version: str = ""


class Callers:
    """`count` callers, each over a connection of its own that it keeps: one request after another, nothing is ever sent twice.

    As a context manager they call inside the block. A request that fails costs its caller a tenth of a second, as a person's retry would.
    """

    def __init__(self, port: int, body: bytes, content_type: str, count: int) -> None:
        self._port = port
        self._body = body
        self._headers = {"content-type": content_type}
        self._stop = threading.Event()
        self._sent: list[list[Sent]] = [[] for _ in range(count)]
        self._threads = [threading.Thread(target=self._call, args=(index,)) for index in range(count)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def sent(self) -> list[Sent]:
        """Every request done with so far, in the order they were sent."""
        return sorted((one for mine in self._sent for one in list(mine)), key=lambda one: one.begun)

    def _call(self, index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._stop.is_set():
            begun, version = time.monotonic(), ""
            try:
                connection.request("POST", "/classify", self._body, self._headers)
                answer = connection.getresponse()
                text, outcome = answer.read(), str(answer.status)
                if answer.status == 200:
                    version = json.loads(text)["version"]
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection.close()  # the next request opens it anew
            self._sent[index].append(Sent(begun, time.monotonic(), outcome, version))
            if outcome != "200":
                self._stop.wait(0.1)
        connection.close()


def failures(sent: Sequence[Sent]) -> dict[str, int]:
    """What was not answered with 200, by outcome."""
    return dict(Counter(one.outcome for one in sent if one.outcome != "200"))
