"""Many callers at one moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx


def at_once(asked: Sequence[str], ask: Callable[[str], httpx.Response]) -> tuple[list[tuple[httpx.Response, str]], list[httpx.Response]]:
    """The answers with status 200, each with what was asked, and those with 429; every one of `asked` by a caller of its own.

    Fails where there is any other answer.
    """
    together = threading.Barrier(len(asked))

    def one(what: str) -> httpx.Response:
        together.wait()
        return ask(what)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(one, asked))
    taken = [(answer, what) for answer, what in zip(answers, asked, strict=True) if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(taken) + len(refused) == len(asked), sorted(answer.text for answer in answers)
    return taken, refused
