"""Callers that ask without a pause until nobody listens any more, and know of each request what became of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx


class Callers:
    """`count` threads that post `content` to `url`; every other one keeps its connection for as long as the service does."""

    def __init__(self, url: str, content: bytes, *, count: int) -> None:
        self.refused = 0  # nobody accepted the connection
        self.lost: list[str] = []  # accepted, and not answered with 200
        self._answered = 0
        self._asking = 0
        self._url, self._content = url, content
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(count)
        self._callers = [self._pool.submit(self._call, keep=index % 2 == 1) for index in range(count)]

    def answered(self) -> int:
        """Requests answered with 200 so far."""
        return self._answered

    def in_flight(self) -> int:
        """Requests that wait for their answer now."""
        return self._asking

    def wait_for(self, answers: int, timeout_s: float = 60) -> None:
        """Come back once so many were answered. Raises AssertionError where that takes too long."""
        self._until(lambda: self._answered >= answers, timeout_s)

    def wait(self, timeout_s: float = 120) -> None:
        """Come back once every caller was refused or has lost a request."""
        for caller in self._callers:
            caller.result(timeout_s)
        self._pool.shutdown()

    def _until(self, happened: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < deadline, f"{self._answered} answers in {timeout_s:g} s, {len(self.lost)} lost: {self.lost[:1]}"
            time.sleep(0.02)

    def _call(self, *, keep: bool) -> None:
        going = True
        while going:
            with httpx.Client(timeout=60) as client:
                going = self._ask(client)
                while keep and going:
                    going = self._ask(client)

    def _ask(self, client: httpx.Client) -> bool:
        with self._lock:
            self._asking += 1
        answered, lost = False, ""
        try:
            answer = client.post(self._url, content=self._content, headers={"content-type": "image/png"})
            answered, lost = answer.status_code == 200, "" if answer.status_code == 200 else f"{answer.status_code}: {answer.text}"
        except httpx.ConnectError:
            pass
        except httpx.HTTPError as error:
            lost = repr(error)
        with self._lock:
            self._asking -= 1
            self._answered += answered
            self.refused += not answered and not lost
            if lost:
                self.lost.append(lost)
        return answered
