"""The wanted rectangle of a resized JPEG, with Pillow's pixels: by `native/jpeg.c`, which decodes no more of the picture than that needs.

It calls the libjpeg-turbo on which the installed Pillow stands. What it declines is Pillow's to decode, or to refuse.
"""

from __future__ import annotations

import ctypes
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from ortserve import compiled
from ortserve.compiled import Way
from ortserve.resample import FILTERED, LARGEST_SIDE, Box, inside

logger = logging.getLogger("ortserve.jpeg")

# Where the upright picture's pixels are in the stored one (Exif 2.32, 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Job:
    """The `within` of a JPEG resized to `size`, which is (width, height) `upright` once turned by its `orientation`."""

    data: bytes
    orientation: int
    upright: tuple[int, int]
    size: tuple[int, int]
    within: Box
    resampling: Image.Resampling

    def room(self) -> NDArray[np.uint8]:
        """Where the pixels go, uint8[height, width, 3]."""
        left, top, right, bottom = self.within
        return np.empty((bottom - top, right - left, 3), np.uint8)

    def arguments(self, pixels: NDArray[np.uint8]) -> tuple[Any, ...]:
        """Those of `ortserve_resample_jpeg`."""
        left, top, right, bottom = self.within
        where = (*self.upright, *self.size, left, top, right - left, bottom - top)
        return self.data, len(self.data), self.orientation, *where, self.resampling, pixels.ctypes.data


ARGUMENTS: list[Any] = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 10, ctypes.c_void_p]


def job(
    data: bytes, orientation: int, upright: tuple[int, int], size: tuple[int, int], box: Box, resampling: Image.Resampling
) -> Job | None:
    """What of `box` a picture resized to `size` has; None where that is nothing, or the compiled function cannot be used."""
    within = inside(size, box)
    if _opened()[0] is None or within is None or resampling not in FILTERED or max(*upright, *size) > LARGEST_SIDE:
        return None
    return Job(data, orientation, upright, size, within, resampling)


def resized(wanted: Job) -> NDArray[np.uint8] | None:
    """The job's pixels, uint8[height, width, 3]; None: ask Pillow.

    None for every picture that is not wholly well-formed, and for inks. Raises MemoryError.
    """
    function, _ = _opened()
    return function(wanted) if function else None


def way() -> Way:
    """Which of the two decodes JPEGs here. The first call opens the compiled one, compares it with Pillow and says in the log which."""
    return _opened()[1]


_Function = Callable[[Job], "NDArray[np.uint8] | None"]


@cache
def _opened() -> tuple[_Function | None, Way]:
    found = compiled.tried(_function, _agrees)
    logger.info("JPEGs are decoded by %s", found[1])
    return found


def _function(library: ctypes.CDLL) -> _Function:
    """The function of the compiled library, over Pillow's libjpeg. Raises AttributeError where it lacks, ImportError where that does."""
    call, bind = library.ortserve_resample_jpeg, library.ortserve_jpeg_open
    call.argtypes = ARGUMENTS
    bind.argtypes, bind.restype = [ctypes.c_void_p], ctypes.c_char_p
    # An opened library is asked for its own symbols and for those of all that it stands on.
    if missing := bind(ctypes.CDLL(_imaging.__file__)._handle):
        raise ImportError(f"this Pillow stands on no libjpeg-turbo that can be called ({missing.decode()}): install Pillow's own wheel")

    def function(job: Job) -> NDArray[np.uint8] | None:
        pixels = job.room()
        ended = call(*job.arguments(pixels))
        if ended == compiled.DECLINED:
            return None
        compiled.check(ended, job.upright, job.size, job.within, job.resampling)
        return pixels

    return function


def _agrees(function: _Function) -> bool:
    """Whether noise becomes Pillow's pixels, for each way that chroma is stored, in one scan and in several, upright and turned.

    Raises ImportError where it becomes none.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (30, 42, 3), dtype=np.uint8)
    noise = Image.fromarray(pixels).resize((210, 150), Image.Resampling.BICUBIC)
    for subsampling, progressive, orientation in ((0, False, 1), (1, False, 6), (2, False, 1), (2, True, 3)):
        file = io.BytesIO()
        noise.save(file, "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
        picture = Image.open(file)
        upright = picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture
        # Resized, and not: then the outermost columns and rows that were decoded are seen as they are.
        for size, box in (((100, 90), (40, 30, 80, 70)), (upright.size, (64, 31, 121, 70))):
            have = function(Job(file.getvalue(), orientation, upright.size, size, box, Image.Resampling.BILINEAR))
            if have is None:
                raise ImportError("the libjpeg-turbo that this Pillow stands on declines what Pillow wrote, as one of another ABI does")
            if not np.array_equal(have, np.asarray(upright.resize(size, Image.Resampling.BILINEAR).crop(box))):
                return False
    return True
