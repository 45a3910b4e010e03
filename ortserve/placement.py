"""Where a picture lies in a detector's input, and the way back: boxes in pixels of the picture as it was sent.

Two ways of `Preprocessing`. `letterbox` is Ultralytics': scaled to fit, centred, the rest filled; its roundings are those of their
`LetterBox` and `scale_boxes`. `stretch` fills the input, whatever the aspect. Both resample without antialiasing where the manifest
says so: most detectors were trained and published with OpenCV's INTER_LINEAR, which is sharper than a filtered picture and has its
aliases; Pillow's affine transform gives OpenCV's pixels to within one level of 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ortserve.manifest import Preprocessing
from ortserve.resample import resized

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Placement:
    """A picture of `picture` pixels, resized to `fitted`, its corner at `corner` of the input; each (horizontal, vertical)."""

    picture: tuple[int, int]
    fitted: tuple[int, int]
    corner: tuple[int, int]
    scale: tuple[float, float]  # input pixels for one of the picture's

    def back(self, boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """Boxes [n,4] of the input in pixels of the picture, cut at its borders."""
        corner, scale, limit = (np.array(pair * 2, np.float64) for pair in (self.corner, self.scale, self.picture))
        return np.clip((boxes - corner) / scale, 0.0, limit)


def place(size: tuple[int, int], how: Preprocessing) -> Placement:
    """Where a picture of that (width, height) lies in the input."""
    width, height = size
    if how.mode == "stretch":
        return Placement(size, (how.width, how.height), (0, 0), (how.width / width, how.height / height))
    scale = min(how.height / height, how.width / width)
    fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (round((side - inside) / 2 - 0.1) for side, inside in zip((how.width, how.height), fitted, strict=True))
    return Placement(size, fitted, (left, top), (scale, scale))


def lay(image: Image.Image, placement: Placement, how: Preprocessing) -> NDArray[np.uint8]:
    """The picture in its place, uint8[height,width,3]. Its own size may be smaller than `placement.picture`: a JPEG decoded in draft."""
    if how.antialias:
        fitted = resized(image, placement.fitted, (0, 0, *placement.fitted), RESAMPLING[how.interpolation])
    else:
        fitted = np.asarray(_unfiltered(image, placement.fitted, how))
    return on_canvas(fitted, placement.corner, how)


def on_canvas(fitted: NDArray[np.uint8], corner: tuple[int, int], how: Preprocessing) -> NDArray[np.uint8]:
    """Pixels uint8[height,width,3] with that (left, top) corner in the model's input, whose rest is `pad_value`; read-only."""
    if fitted.shape[:2] == (how.height, how.width):
        return fitted
    canvas = np.full((how.height, how.width, 3), how.pad_value, np.uint8)
    left, top = corner
    canvas[top : top + fitted.shape[0], left : left + fitted.shape[1]] = fitted
    canvas.flags.writeable = False
    return canvas


def _unfiltered(image: Image.Image, size: tuple[int, int], how: Preprocessing) -> Image.Image:
    if image.size == size:
        return image
    steps = (image.width / size[0], 0.0, 0.0, 0.0, image.height / size[1], 0.0)
    return image.transform(size, Image.Transform.AFFINE, steps, RESAMPLING[how.interpolation])
