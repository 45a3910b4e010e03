"""The user's calibration pictures: read from a folder exactly as the service would read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ortserve.errors import CalibrationError, RequestError
from ortserve.export.loaded import Pixels
from ortserve.export.tasks import Advance, Probe, Samples, batches_up_to
from ortserve.images import load
from ortserve.manifest import Preprocessing
from ortserve.profile import Limits

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
# More pictures would move a measured agreement by less than half a per cent and cost minutes on a large model.
MOST = 1000
# MinMax ranges settle within some tens of pictures; ONNX Runtime's own examples use about a hundred.
CALIBRATION = 100


def picture_probes(preprocessing: Preprocessing, max_batch: int) -> list[Probe]:
    """Noise at every batch size, all black, all white, as rows of the one input `pixels`."""
    shape = (preprocessing.height, preprocessing.width, 3)
    noise = np.random.default_rng(0).integers(0, 256, (max_batch, *shape), dtype=np.uint8)
    flat = {name: np.full((1, *shape), value, np.uint8) for name, value in (("black", 0), ("white", 255))}
    return [
        Probe("noise", {"pixels": noise}, batches_up_to(max_batch)),
        *(Probe(name, {"pixels": pixels}, (1,)) for name, pixels in flat.items()),
    ]


def to_pixels(data: bytes, preprocessing: Preprocessing) -> Pixels:
    """One picture's bytes as uint8[H,W,3], by the service's own decoding, under the default profile's limits."""
    return load(data, preprocessing, Limits(), decoder="exact")


def read_folder(folder: Path, preprocessing: Preprocessing, advance: Advance, *, enough: int) -> Samples:
    """The pictures under `folder` (also in folders below it), `MOST` of them evenly chosen where there are more; `enough` to measure on.

    Raises CalibrationError where there is none, or one that the service could not read either.
    """
    if not folder.is_dir():
        raise CalibrationError(f"--calibration {folder}: expected a folder of pictures, found {'a file' if folder.exists() else 'nothing'}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise CalibrationError(f"--calibration {folder}: no picture in it; expected files ending in {', '.join(sorted(SUFFIXES))}")
    chosen = [paths[index] for index in spread(len(paths), MOST)]
    pixels = []
    for index, path in enumerate(chosen):
        try:
            pixels.append(to_pixels(path.read_bytes(), preprocessing))
        except (RequestError, OSError) as error:
            raise CalibrationError(f"--calibration: {path.relative_to(folder)} cannot be read ({error}): remove or replace it") from error
        advance(index + 1, len(chosen))
    return divided(np.stack(pixels), enough)


def divided(pixels: Pixels, enough: int) -> Samples:
    """Pictures to calibrate on and others to measure on; the same ones for both where there are too few to part."""
    wanted = min(CALIBRATION, len(pixels))
    calibration = spread(len(pixels), wanted)
    others = np.setdiff1d(np.arange(len(pixels)), calibration)
    if len(others) >= enough:
        return as_samples(pixels[calibration], pixels[others], f"{len(others)} pictures, none of them calibrated on")
    return as_samples(pixels[calibration], pixels, f"{len(pixels)} pictures, {wanted} of them also calibrated on")


def as_samples(calibration: Pixels, measurement: Pixels, note: str) -> Samples:
    """Pictures as rows of the one input `pixels`."""
    return Samples({"pixels": calibration}, {"pixels": measurement}, note)


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices below `count`, evenly spread: a folder sorted by class gives every class its share."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, most))})
