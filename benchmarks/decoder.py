"""What a picture costs as it is served and by Pillow alone, to decode and to resize, and what the `draft` decoder changes against `exact`.

    python benchmarks/decoder.py [--rounds 40] [--output benchmarks/results/decoder.json]

Real photographs (the two that scikit-learn carries, 640 x 427), tiled for the larger sizes so that their detail stays real. All ways of one
picture are timed by turns in one run; the medians and their ratios are kept.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features
from sklearn.datasets import load_sample_images

from ortserve import image_headers, images, jpeg, resample
from ortserve.manifest import Preprocessing
from ortserve.profile import Limits

HOW = Preprocessing(mode="crop", height=224, width=224, resize_size=256, mean=(0, 0, 0), std=(1, 1, 1))
LIMITS = Limits()


def photographs() -> dict[str, Image.Image]:
    """Name to picture: the size that most requests have, then those where `draft` may shrink by 2, 4 and 8."""
    found = {}
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        found[f"{name} 500x375"] = Image.fromarray(pixels).crop((70, 26, 570, 401))
        for times in (2, 3, 5):
            found[f"{name} {640 * times}x{427 * times}"] = Image.fromarray(np.tile(pixels, (times, times, 1)))
    return found


def by_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each way, run in turn so that the machine's moods meet all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: median(values) for name, values in times.items()}


def measure(picture: Image.Image, rounds: int, quality: int = 85) -> dict[str, Any]:
    """One picture as a JPEG: bytes, milliseconds of each way and step, and how far draft's pixels are from exact's."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    data = buffer.getvalue()
    decoded = images.decode(data, LIMITS)
    exact, draft = (images.load(data, HOW, LIMITS, decoder=decoder) for decoder in ("exact", "draft"))
    if not (np.array_equal(exact, by_pillow(decoded)) and np.array_equal(images.preprocess(decoded, HOW), exact)):
        raise AssertionError("the pixels differ from Pillow's: expected the same; run pytest tests/unit/test_jpeg.py")
    difference = np.abs(exact.astype(int) - draft)
    ms = by_turns(
        {
            "exact": lambda: images.load(data, HOW, LIMITS, decoder="exact"),
            "exact_by_pillow": lambda: by_pillow(images.decode(data, LIMITS)),
            "draft": lambda: images.load(data, HOW, LIMITS, decoder="draft"),
            "header": lambda: image_headers.inspect(data, LIMITS),
            "decode": lambda: images.decode(data, LIMITS),
            "resize": lambda: images.preprocess(decoded, HOW),
            "resize_by_pillow": lambda: by_pillow(decoded),
        },
        rounds,
    )
    return {
        "jpeg_bytes": len(data),
        "ms": {name: round(value, 3) for name, value in ms.items()},
        "exact_speedup": round(ms["exact_by_pillow"] / ms["exact"], 2),
        "resize_speedup": round(ms["resize_by_pillow"] / ms["resize"], 2),
        "draft_speedup": round(ms["exact"] / ms["draft"], 2),
        "draft_max_abs": int(difference.max()),
        "draft_mean_abs": round(float(difference.mean()), 3),
        "two_threads_speedup": round(two_threads(data, rounds), 2),
    }


def by_pillow(decoded: Image.Image) -> NDArray[np.uint8]:
    """What `images.preprocess` gives, by Pillow alone."""
    width, height = images.shorter_side(decoded.size, HOW.resize_size or 0)
    left, top = round((width - HOW.width) / 2), round((height - HOW.height) / 2)
    return np.asarray(decoded.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + HOW.width, top + HOW.height)))


def two_threads(data: bytes, rounds: int) -> float:
    """Pictures per second of two threads over those of one: how far decoding lets go of the interpreter, where two CPUs are free."""

    def several(count: int) -> None:
        for _ in range(count):
            images.load(data, HOW, LIMITS, decoder="exact")

    with ThreadPoolExecutor(2) as pool:
        ms = by_turns({"one": lambda: several(4), "two": lambda: list(pool.map(several, (2, 2)))}, rounds)
    return ms["one"] / ms["two"]


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "decoder.json")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "pillow": PIL.__version__,
        "jpeg_decode": jpeg.way().name,
        "resize": resample.way().name,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "preprocessing": HOW.model_dump(include={"mode", "height", "width", "resize_size", "interpolation"}),
        "rounds": arguments.rounds,
        "pictures": {},
    }
    print(f"decoded by: {jpeg.way()}\nresized by: {resample.way()}")
    names = ("bytes", "resize ms", "Pillow", "exact ms", "Pillow", "draft ms", "ratio", "max abs", "mean abs", "2 threads")
    print(f"{'picture':18} {' '.join(f'{name:>9}' for name in names)}")
    for name, picture in photographs().items():
        row = result["pictures"][name] = measure(picture, arguments.rounds)
        ms = row["ms"]
        print(
            f"{name:18} {row['jpeg_bytes']:9,} {ms['resize']:9.2f} {ms['resize_by_pillow']:9.2f} {ms['exact']:9.2f} "
            f"{ms['exact_by_pillow']:9.2f} {ms['draft']:9.2f} "
            f"{row['draft_speedup']:9.2f} {row['draft_max_abs']:9} {row['draft_mean_abs']:9.3f} {row['two_threads_speedup']:9.2f}"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
