"""How pictures are prepared for a source: what the source says, then what the command line overrides."""

from __future__ import annotations

import math
from typing import Literal

from ortserve.errors import SourceError
from ortserve.export.options import Options, Triple
from ortserve.manifest import Preprocessing

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
# ImageNet's, which most published classifiers were trained with; stated by the build and stored in the manifest.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
DEFAULT_SIDE = 224
DEFAULT_DETECTOR_SIDE = 640  # what YOLO's published models were trained at
# torchvision's and most papers' way: resize the shorter side to 256, cut 224.
RESIZE_RATIO = 256 / 224


def decide(
    options: Options,
    *,
    size: tuple[int, int] | None = None,
    resize_size: int | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    interpolation: Interpolation = "bilinear",
) -> Preprocessing:
    """The pre-processing from what the source says of itself (keywords), overridden by the command line, filled with defaults.

    Raises SourceError where a mean or std is no sensible number.
    """
    height, width = options.input_size or size or (DEFAULT_SIDE, DEFAULT_SIDE)
    mode = options.resize_mode or "crop"
    # Another size than the source's keeps the source's proportion of what the crop shows.
    known = min(size) if size is not None else None
    ratio = resize_size / known if resize_size is not None and known is not None else RESIZE_RATIO
    shorter = max(round(min(height, width) * ratio), height, width) if mode == "crop" else None
    return Preprocessing(
        mode=mode,
        height=height,
        width=width,
        resize_size=shorter,
        interpolation=interpolation,
        channels=options.channel_order or "rgb",
        mean=_triple("--mean", options.mean or mean or IMAGENET_MEAN, low=-1.0),
        std=_triple("--std", options.std or std or IMAGENET_STD, low=1e-6),
    )


def decide_detector(
    options: Options,
    *,
    size: tuple[int, int] | None = None,
    mode: Literal["letterbox", "stretch"] = "letterbox",
    mean: Triple | None = None,
    std: Triple | None = None,
) -> Preprocessing:
    """As `decide`, for a detector: the whole picture stays in sight, since a box outside of a crop could not be found.

    Pixels of 0 to 1 and a grey of 114 around them are YOLO's. Raises SourceError where a mean or std is no sensible number, or for a
    way of resizing that does not lead back to the picture.
    """
    if options.resize_mode not in (None, "letterbox", "stretch"):
        raise SourceError(f"--resize-mode {options.resize_mode}: a detector's picture is letterboxed or stretched: choose one of them")
    height, width = options.input_size or size or (DEFAULT_DETECTOR_SIDE, DEFAULT_DETECTOR_SIDE)
    return Preprocessing(
        mode=options.resize_mode or mode,
        height=height,
        width=width,
        antialias=False,
        pad_value=114,
        channels=options.channel_order or "rgb",
        mean=_triple("--mean", options.mean or mean or (0.0, 0.0, 0.0), low=-1.0),
        std=_triple("--std", options.std or std or (1.0, 1.0, 1.0), low=1e-6),
    )


def _triple(name: str, values: Triple, *, low: float) -> Triple:
    """Three finite numbers from `low` to 2; above that they were surely meant for pixels of 0 to 255."""
    for value in values:
        if not (math.isfinite(value) and low <= value <= 2.0):
            raise SourceError(
                f"{name}: expected three numbers for pixel values of 0 to 1, as in 0.485 0.456 0.406, got {value}: divide by 255?"
            )
    return values
