"""The wanted rectangle of a resized JPEG, with Pillow's pixels: by `native/jpeg.c`, which decodes no more of the picture than that needs.

It calls the libjpeg-turbo on which the installed Pillow stands. What it declines is Pillow's to decode, or to refuse.
"""

from __future__ import annotations

import ctypes
import io
import logging
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from ortserve import compiled
from ortserve.compiled import Way
from ortserve.resample import FILTERED, LARGEST_SIDE, Box, bordered, inside

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


def resized(
    data: bytes, orientation: int, upright: tuple[int, int], size: tuple[int, int], box: Box, resampling: Image.Resampling
) -> NDArray[np.uint8] | None:
    """What `resample.resized` gives of the JPEG in `data`, (width, height) `upright` once turned by its `orientation`; None: ask Pillow.

    None for every picture that is not wholly well-formed, for inks, and where the compiled function cannot be used. Raises MemoryError.
    """
    within = inside(size, box)
    function, _ = _opened()
    if function is None or within is None or resampling not in FILTERED or max(*upright, *size) > LARGEST_SIDE:
        return None
    pixels = function(data, orientation, upright, size, within, resampling)
    return None if pixels is None else bordered(pixels, within, box)


def way() -> Way:
    """Which of the two decodes JPEGs here. The first call opens the compiled one, compares it with Pillow and says in the log which."""
    return _opened()[1]


_Function = Callable[[bytes, int, tuple[int, int], tuple[int, int], Box, Image.Resampling], "NDArray[np.uint8] | None"]


@cache
def _opened() -> tuple[_Function | None, Way]:
    found = compiled.tried(_function, _agrees)
    logger.info("JPEGs are decoded by %s", found[1])
    return found


def _function(library: ctypes.CDLL) -> _Function:
    """The function of the compiled library, over Pillow's libjpeg. Raises AttributeError where it lacks, ImportError where that does."""
    call, bind = library.ortserve_resample_jpeg, library.ortserve_jpeg_open
    call.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 10, ctypes.c_void_p]
    bind.argtypes, bind.restype = [ctypes.c_void_p], ctypes.c_char_p
    # An opened library is asked for its own symbols and for those of all that it stands on.
    if missing := bind(ctypes.CDLL(_imaging.__file__)._handle):
        raise ImportError(f"this Pillow stands on no libjpeg-turbo that can be called ({missing.decode()}): install Pillow's own wheel")

    def function(
        data: bytes, orientation: int, upright: tuple[int, int], size: tuple[int, int], box: Box, resampling: Image.Resampling
    ) -> NDArray[np.uint8] | None:
        """The pixels of a box inside the picture of that size."""
        left, top, right, bottom = box
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        ended = call(data, len(data), orientation, *upright, *size, left, top, right - left, bottom - top, resampling, pixels.ctypes.data)
        if ended == compiled.DECLINED:
            return None
        compiled.check(ended, upright, size, box, resampling)
        return pixels

    return function


def _agrees(function: _Function) -> bool:
    """Whether noise becomes Pillow's pixels, for each way that chroma is stored, in one scan and in several, upright and turned."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 42, 3), dtype=np.uint8)
    noise = Image.fromarray(pixels).resize((210, 150), Image.Resampling.BICUBIC)
    for subsampling, progressive, orientation in ((0, False, 1), (1, False, 6), (2, False, 1), (2, True, 3)):
        file = io.BytesIO()
        noise.save(file, "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
        picture = Image.open(file)
        upright = picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture
        # Resized, and not: then the outermost columns and rows that were decoded are seen as they are.
        for size, box in (((100, 90), (40, 30, 80, 70)), (upright.size, (64, 31, 121, 70))):
            have = function(file.getvalue(), orientation, upright.size, size, box, Image.Resampling.BILINEAR)
            if have is None or not np.array_equal(have, np.asarray(upright.resize(size, Image.Resampling.BILINEAR).crop(box))):
                return False
    return True
