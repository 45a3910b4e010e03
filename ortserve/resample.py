"""A rectangle of a resized picture, with Pillow's pixels: by `native/resample.c` where it was compiled, else by Pillow."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from ortserve import compiled
from ortserve.compiled import Way

logger = logging.getLogger("ortserve.resample")

Box = tuple[int, int, int, int]  # left, top, right, bottom
# Pillow's blocks are 16 MB unless told otherwise, and what lies in several cannot be lent. A block is as large as its picture at most.
_ONE_BLOCK = 2**31 - 4096
# Beyond it Pillow's floats no longer hold a side exactly.
LARGEST_SIDE = 2**24
FILTERED = frozenset({Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS})  # those that resample.c has


def resized(image: Image.Image, size: tuple[int, int], box: Box, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """`image.resize(size, resampling).crop(box)` of an RGB picture as `uint8[height, width, 3]`, C-contiguous and read-only.

    Every byte is Pillow's, by either way. What of the box lies outside the resized picture is black.
    """
    within = inside(size, box)
    if image.size == size or resampling not in FILTERED or within is None:
        return _by_pillow(image, size, box, resampling)
    function, _ = _opened()
    pixels = function(image, size, within, resampling) if function else None
    return _by_pillow(image, size, box, resampling) if pixels is None else bordered(pixels, within, box)


def inside(size: tuple[int, int], box: Box) -> Box | None:
    """What of the box lies in a picture of that size; None: nothing."""
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])
    return (left, top, right, bottom) if left < right and top < bottom else None


def bordered(pixels: NDArray[np.uint8], within: Box, box: Box) -> NDArray[np.uint8]:
    """The box of which `pixels` are what lies within: black around them; read-only."""
    if within != box:
        whole = np.zeros((box[3] - box[1], box[2] - box[0], 3), np.uint8)
        whole[within[1] - box[1] : within[3] - box[1], within[0] - box[0] : within[2] - box[0]] = pixels
        pixels = whole
    pixels.flags.writeable = False
    return pixels


def way() -> Way:
    """Which of the two resizes pictures here. The first call opens the compiled one, compares it with Pillow and says in the log which."""
    return _opened()[1]


def _by_pillow(image: Image.Image, size: tuple[int, int], box: Box, resampling: Image.Resampling) -> NDArray[np.uint8]:
    fitted = image if image.size == size else image.resize(size, resampling)
    return np.asarray(fitted if box == (0, 0, *size) else fitted.crop(box))


# --- the compiled way -------------------------------------------------------------------------------------------------

_Function = Callable[[Image.Image, tuple[int, int], Box, Image.Resampling], "NDArray[np.uint8] | None"]


class _ArrowArray(ctypes.Structure):
    """Of the Arrow C data interface, as far as it is read here."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]


@cache
def _opened() -> tuple[_Function | None, Way]:
    found = compiled.tried(_function, _agrees)
    if found[0]:
        _imaging.set_block_size(_ONE_BLOCK)
    logger.info("pictures are resized by %s", found[1])
    return found


def _function(library: ctypes.CDLL) -> _Function:
    """The function of the compiled library. Raises AttributeError where it is not what its name says."""
    call = library.ortserve_resample
    call.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 9, ctypes.c_void_p]
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))

    def function(image: Image.Image, size: tuple[int, int], box: Box, resampling: Image.Resampling) -> NDArray[np.uint8] | None:
        """The pixels of a box inside the picture of that size, None where they are Pillow's to make."""
        if image.mode != "RGB" or max(*image.size, *size) > LARGEST_SIDE:
            return None
        try:
            _, lent = image.__arrow_c_array__()  # Pillow's own bytes, four a pixel, for as long as it is held
        except ValueError:  # in several blocks, of before the block's size was set
            return None
        source = _ArrowArray.from_address(pointer_of(lent, b"arrow_array")).children[0].contents.buffers[1]
        left, top, right, bottom = box
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        ended = call(source, *image.size, *size, left, top, right - left, bottom - top, resampling, pixels.ctypes.data)
        compiled.check(ended, image.size, size, box, resampling)
        return pixels

    return function


def _agrees(function: _Function) -> bool:
    """Whether noise becomes the same pixels by either way, for both orders of the passes."""
    noise = np.random.default_rng(0)
    for source, size in (((61, 47), (40, 31)), ((33, 160), (30, 29)), ((21, 13), (50, 37))):
        image = Image.fromarray(noise.integers(0, 256, (source[1], source[0], 3), dtype=np.uint8))
        for resampling in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
            box = (3, 2, size[0] - 1, size[1])
            pixels = function(image, size, box, resampling)
            if pixels is None or not np.array_equal(pixels, _by_pillow(image, size, box, resampling)):
                return False
    return True
