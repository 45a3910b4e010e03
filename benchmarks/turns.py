"""A bare run and a request by turns, one caller for both: what the service adds to decoding a picture and running the model on it.

`python -m benchmarks.turns MODEL.onnx PORT SECONDS SETUP --picture FILE... --request FILE...` prints one line of JSON. SETUP is one of
`benchmarks.bare`; each picture is the one that the request at its place holds.

Within seconds a machine drifts by more than a service may add, and the ratio of two windows one after the other is mostly that drift. Two
that take turns all the time see the same machine.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.bare import opened, run_decoded
from ortserve.manifest import Manifest

SPIN_US = 3000  # longer than any gap between two operators: within a run, threads that spin do as they would if they never stopped
REST_S = 0.004  # longer than that: they sleep when the service has its turn
LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)

Call = Callable[[int], Any]  # told which picture's turn it is


def by_turns(bare: Call, asked: Callable[[int], bytes], pictures: int, seconds: float) -> dict[str, Any]:
    """The median milliseconds of a call of each, and how many there were of each: one at least.

    In its turn each is called twice, and the second call counts: the first one finds the caches as the other has left them, which no caller
    does that is alone. Raises RuntimeError where `asked` is not answered well.
    """
    took: dict[Call, list[float]] = {bare: [], asked: []}
    until = time.perf_counter() + seconds
    for picture in cycle(range(pictures)):
        for call, times in took.items():
            time.sleep(REST_S)
            call(picture)
            started = time.perf_counter()
            said = call(picture)
            times.append(time.perf_counter() - started)
        expect_answer(said)
        if time.perf_counter() >= until:
            break
    bare_ms, asked_ms = (median(times) * 1000 for times in took.values())
    return {"in_turns_p50_ms": asked_ms, "in_turns_bare_p50_ms": bare_ms, "in_turns_calls": len(took[asked])}


def ask(connection: socket.socket, request: bytes) -> bytes:
    """What is answered at once: the whole of a short answer."""
    connection.sendall(request)
    return connection.recv(2**16)


def expect_answer(said: bytes) -> None:
    """Nothing, where it is a whole answer with status 200. Raises RuntimeError."""
    head, _, body = said.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None or len(body) != int(length[1]):
        raise RuntimeError(f"expected a whole answer with status 200, got {said[:200]!r}: the log of the service says why")


def main(
    model: Path,
    port: int,
    seconds: float,
    setup: str,
    picture: Annotated[list[Path], typer.Option()],
    request: Annotated[list[Path], typer.Option()],
) -> None:
    """Measure and print."""
    pictures, requests = ([file.read_bytes() for file in files] for files in (picture, request))
    how = Manifest.read(model.parent).preprocessing
    if how is None or len(pictures) != len(requests):
        raise typer.BadParameter("expected a model of pictures, and as many of these as requests")
    session = opened(model, json.loads(setup), spin_duration_us=SPIN_US)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found = by_turns(
            lambda index: run_decoded(session, how, pictures[index]),
            lambda index: ask(connection, requests[index]),
            len(pictures),
            seconds,
        )
    print(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
