"""A lean closed-loop HTTP/1.1 client: raw sockets, requests made beforehand, so that it costs the server's machine little.

`python -m benchmarks.client PORT PATH CONCURRENCY SECONDS FILE...` prints one line of JSON. A FILE ending in .json is a whole body,
one ending in .N.tensors a body whose first N bytes are JSON and whose others are tensors, any other a picture.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

WARM_UP_S = 1.5


def json_request(body: bytes, path: str) -> bytes:
    """A whole POST request with that JSON as its body."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def tensor_request(body: bytes, path: str, json_bytes: int) -> bytes:
    """A whole POST request with binary tensors behind that much JSON, as the Open Inference Protocol's extension has it."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
    return head.encode() + f"Inference-Header-Content-Length: {json_bytes}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def request_of(file: Path, path: str) -> bytes:
    """A whole POST request with what that file holds."""
    body = file.read_bytes()
    if file.suffix == ".tensors":
        return tensor_request(body, path, int(file.suffixes[-2].removeprefix(".")))
    return (json_request if file.suffix == ".json" else request_for)(body, path)


def request_for(picture: bytes, path: str) -> bytes:
    """A whole POST request with the picture as a multipart field, as `curl -F image=@...` sends it."""
    boundary = b"----------------------------benchmark"
    body = (
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="image"; filename="p.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        + picture + b"\r\n--" + boundary + b"--\r\n"
    )  # fmt: skip
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={boundary.decode()}\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


async def caller(
    port: int, requests: list[bytes], stop_at: float, count_from: float, latencies: list[float], statuses: Counter[str]
) -> None:
    """Send one request after another over one connection until `stop_at`; what is answered from `count_from` to `stop_at` counts.

    Answers are what is counted, not beginnings: with N callers, N requests are always under way at either end of the window.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    turn = 0
    while (started := time.perf_counter()) < stop_at:
        writer.write(requests[turn % len(requests)])
        turn += 1
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))[15:])
        await reader.readexactly(length)
        if count_from <= (answered := time.perf_counter()) <= stop_at:
            latencies.append(answered - started)
            statuses[head[9:12].decode()] += 1
    writer.close()


async def closed_loop(port: int, path: str, concurrency: int, seconds: float, files: list[Path]) -> dict[str, object]:
    """Requests per second and latencies (ms) of `concurrency` callers over `seconds`, warm-up left out."""
    requests = [request_of(file, path) for file in files]
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    begin = time.perf_counter()
    count_from = begin + WARM_UP_S
    stop_at = count_from + seconds
    turns = [requests[turn % len(requests) :] + requests[: turn % len(requests)] for turn in range(concurrency)]
    await asyncio.gather(*(caller(port, mine, stop_at, count_from, latencies, statuses) for mine in turns))
    counted = len(latencies)
    latencies = sorted(latencies) or [seconds]  # none was answered in time: at least as long as was waited
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "requests": counted,
        "requests_per_s": counted / seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1000,
        "statuses": dict(statuses),
        "client_cpu_s": usage.ru_utime + usage.ru_stime,
    }


if __name__ == "__main__":
    port, path, concurrency, seconds, *names = sys.argv[1:]
    print(json.dumps(asyncio.run(closed_loop(int(port), path, int(concurrency), float(seconds), [Path(name) for name in names]))))
