"""Where CPU time goes, by part of a server: what py-spy saw each thread do, weighed by the CPU seconds the kernel counts for that thread.

py-spy sees the threads that have a Python frame, and takes one that waits for a CPU for one that has it: on a busy machine it counts too
much, but evenly within a thread. So its samples only divide a thread's seconds. Threads without a Python frame are ONNX Runtime's own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

DECODE, RESIZE, MODEL, HTTP = "decoding the JPEG", "resizing and cropping", "running the model", "HTTP and the event loop"
ROUTES, THREADS, JSON = "routes, checks, queue", "handing over between threads", "JSON"
METRICS, LOGS, REST = "metrics", "logs", "the rest"
# A frame is `function (file:line)`. From the innermost frame outwards, the first one that a rule knows decides; of two rules the first.
RULES = tuple(
    (part, re.compile(rule))
    for part, rule in (
        (RESIZE, r"^Image\.(resize|_?crop|reduce|tobytes|__array_interface__) |\(ortserve/resample"),
        (RESIZE, r"^(_resize|_crop|preprocess) \(ortserve/images\."),
        (RESIZE, r"^pixels \(shared\.py"),  # itself: the copy into an array
        (DECODE, r"\(PIL/|\(ortserve/(image|jpeg)"),
        (MODEL, r"\(onnxruntime/|\(ortserve/(session|shared_pool)\.py|^(Batch\.|_?stack)\S* \(ortserve/batch|^Onnx\."),
        (JSON, r"\((json|orjson|msgspec)\b"),
        (METRICS, r"\((prometheus_client/|ortserve/\w*(metrics|multiprocess)\w*\.py)"),
        (LOGS, r"\((logging/|ortserve/logs\.py)"),
        (THREADS, r"\((concurrent/futures/|threading\.py|queue\.py|ortserve/(slots|threads)\.py|asyncio/(futures|locks|queues)\.py)"),
        (HTTP, r"\((uvicorn/|httptools|uvloop|asyncio/|h11/|anyio/)"),
        (ROUTES, r"\((ortserve/|service\.py|fastapi/|starlette/|tuned\.py|shared\.py|python_multipart|_bentoml)"),
    )
)
PARTS = (DECODE, RESIZE, MODEL, HTTP, ROUTES, THREADS, JSON, METRICS, LOGS, REST)
_FRAME = re.compile(r"\(.+\)$")  # of a thread that only touched the interpreter py-spy may name none
_THREAD = re.compile(r"thread \((\d+)\)")


def part_of(frames: Iterable[str]) -> str:
    """The part that a stack belongs to; `frames` from the outermost to the innermost."""
    for frame in reversed(list(frames)):
        for part, rule in RULES:
            if rule.search(frame):
                return part
    return REST


def folded(lines: Iterable[str], cpu_s: Mapping[int, float], names: Mapping[int, str]) -> dict[str, float]:
    """CPU seconds of each part. `lines` are py-spy's (`--format raw --threads`), `cpu_s` the seconds of each of the server's threads.

    Threads without Python are told by their `names`: those that decode JPEGs, else the session's.

    A thread that py-spy names by no number of the kernel's is left out. Raises ValueError where a line is none of py-spy's.
    """
    samples: dict[int, Counter[str]] = {}
    for line in lines:
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        if not count.isdecimal() or not thread.startswith("thread "):
            raise ValueError(f"expected `thread (ID): NAME;FRAME;... COUNT` as py-spy writes with --threads, got {line[:200]!r}")
        if (found := _THREAD.match(thread)) and any(_FRAME.search(frame) for frame in frames):
            samples.setdefault(int(found[1]), Counter())[part_of(frames)] += int(count)
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for thread_id, seconds in cpu_s.items():
        seen = samples.get(thread_id, Counter({DECODE if names.get(thread_id) == "jpeg" else MODEL: 1}))
        for part, count in seen.items():
            parts[part] += seconds * count / seen.total()
    return parts
