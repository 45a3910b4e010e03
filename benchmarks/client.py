"""The load client: `client.c`, compiled where it is not yet, and the requests it sends, made beforehand.

`python -m benchmarks.client PORT PATH CALLERS SECONDS FILE... [--rate R]` prints one line of JSON. A FILE ending in .json is a whole
body, one ending in .http a whole request, any other a picture. Needs gcc and nothing but Python's own packages: `make gpu` runs it where
there is no registry.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.places import WORK

SOURCE = Path(__file__).with_name("client.c")
WARM_UP_S = 0.5  # at least, before anything counts


def compiled() -> Path:
    """The program, compiled once for each text of its source. Raises RuntimeError with the compiler's words where that fails."""
    program = WORK / "client" / hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(".part")
        try:
            subprocess.run(
                ["gcc", "-std=gnu11", "-O2", "-o", str(unfinished), str(SOURCE), "-lm"], check=True, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise RuntimeError(
                "expected the C compiler gcc for the load client, found none: install gcc and the C library's headers"
            ) from None
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"gcc could not compile {SOURCE.name}:\n{error.stderr}") from error
        unfinished.rename(program)
    return program


def post(path: str, media_type: str, body: bytes, headers: str = "") -> bytes:
    """A whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def multipart(path: str, pictures: Sequence[bytes], field: str = "image") -> bytes:
    """A whole POST request with the pictures as multipart fields, as `curl -F image=@...` sends them."""
    boundary = b"----------------------------benchmark"
    parts = [
        b"--" + boundary + f'\r\nContent-Disposition: form-data; name="{field}"; filename="p.jpg"\r\n'.encode()
        + b"Content-Type: image/jpeg\r\n\r\n" + picture + b"\r\n"
        for picture in pictures
    ]  # fmt: skip
    return post(path, f"multipart/form-data; boundary={boundary.decode()}", b"".join(parts) + b"--" + boundary + b"--\r\n")


def request_file(request: bytes) -> Path:
    """A file with that request in it, for the client to read."""
    path = WORK / "requests" / f"{hashlib.sha256(request).hexdigest()[:16]}.http"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(request)
    return path


def load(
    port: int, callers: int, seconds: float, files: Sequence[Path], *, rate: float = 0, seed: int = 0, warm_up_s: float = WARM_UP_S
) -> dict[str, Any]:
    """What the client says of a closed loop of `callers`, or of an open one with `rate` requests a second over at most `callers`
    connections. `files` hold whole requests; what happens in `warm_up_s` does not count. Times in ms; client.c says what counts."""
    command = [compiled(), port, callers, seconds, rate, seed, warm_up_s, *files]
    said = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(said)
    return result


def as_request(file: Path, path: str) -> Path:
    """The file with the whole request that sends `file` to `path`."""
    if file.suffix == ".http":
        return file
    content = file.read_bytes()
    return request_file(post(path, "application/json", content) if file.suffix == ".json" else multipart(path, [content]))


def main() -> None:
    """Load a server on 127.0.0.1 and print what it did. With --rate: an open loop over at most CALLERS connections."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=main.__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("callers", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    files = [as_request(file, asked.path) for file in asked.files]
    print(json.dumps(load(asked.port, asked.callers, asked.seconds, files, rate=asked.rate, seed=asked.seed)))


if __name__ == "__main__":
    main()
