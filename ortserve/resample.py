"""A rectangle of a resized picture, with Pillow's pixels: by `resample.c` where it was compiled, else by Pillow, several times slower.

    python -m ortserve.resample

compiles it with the C compiler of this machine, beside its source, under a name that says which source and which machine: a stale one is
never loaded. One that cannot be loaded, or that gives other pixels than the installed Pillow, is not used; `way` tells, and why.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, _imaging

logger = logging.getLogger("ortserve.resample")

SOURCES = (Path(__file__).with_name("resample.c"), Path(__file__).with_name("resample_passes.h"))
# No flag for the arithmetic of floats: the compiler's default is what Pillow's own code is compiled with.
FLAGS = ("-std=gnu11", "-O3", "-fwrapv", "-fPIC", "-shared")
REMEDY = "install gcc and the C library's headers, then run python -m ortserve.resample"

Box = tuple[int, int, int, int]  # left, top, right, bottom
# Pillow's blocks are 16 MB unless told otherwise, and what lies in several cannot be lent. A block is as large as its picture at most.
_ONE_BLOCK = 2**31 - 4096
_NO_MEMORY = 2  # of resample.c, as is any other but 0: nonsense was asked for
# Beyond it Pillow's floats no longer hold a side exactly.
_LARGEST_SIDE = 2**24


class Way(NamedTuple):
    """Which of the two resizes pictures in this process, and why."""

    name: Literal["compiled", "pillow"]
    why: str


def resized(image: Image.Image, size: tuple[int, int], box: Box, resampling: Image.Resampling) -> NDArray[np.uint8]:
    """`image.resize(size, resampling).crop(box)` of an RGB picture as `uint8[height, width, 3]`, C-contiguous and read-only.

    Every byte is Pillow's, by either way. What of the box lies outside the resized picture is black.
    """
    inside = (max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1]))
    if image.size == size or resampling == Image.Resampling.NEAREST or inside[0] >= inside[2] or inside[1] >= inside[3]:
        return _by_pillow(image, size, box, resampling)
    function, _ = _opened()
    pixels = function(image, size, inside, resampling) if function else None
    if pixels is None:
        return _by_pillow(image, size, box, resampling)
    if inside != box:
        whole = np.zeros((box[3] - box[1], box[2] - box[0], 3), np.uint8)
        whole[inside[1] - box[1] : inside[3] - box[1], inside[0] - box[0] : inside[2] - box[0]] = pixels
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
    """The compiled function, where it is used, and which way that makes."""
    path = compiled_file()
    function, why = _tried(path)
    if function:
        _imaging.set_block_size(_ONE_BLOCK)
    logger.info("pictures are resized by %s", why if function else f"Pillow, same pixels but slower: {why}")
    return function, Way("compiled" if function else "pillow", why)


def _tried(path: Path) -> tuple[_Function | None, str]:
    """What `path` holds and its name, or None and what is wrong with it, with the remedy."""
    if not path.exists():
        return None, f"there is no {path.name}; {REMEDY}"
    try:
        function = _function(path)
        agrees = _agrees(function)
    except (OSError, AttributeError) as error:
        return None, f"{path.name} cannot be used ({error}); remove it, {REMEDY}"
    if not agrees:
        logger.warning("Pillow %s has other pixels than %s, made for Pillow 13: use the one of requirements/", PIL.__version__, path.name)
        return None, f"Pillow {PIL.__version__} has other pixels than {path.name}"
    return function, path.name


def _function(path: Path) -> _Function:
    """The function in `path`. Raises OSError where it cannot be loaded, AttributeError where it is not what its name says."""
    call = ctypes.CDLL(str(path)).ortserve_resample
    call.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 9, ctypes.c_void_p]
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))

    def function(image: Image.Image, size: tuple[int, int], box: Box, resampling: Image.Resampling) -> NDArray[np.uint8] | None:
        """The pixels of a box inside the picture of that size, None where they are Pillow's to make."""
        if image.mode != "RGB" or max(*image.size, *size) > _LARGEST_SIDE:
            return None
        try:
            _, lent = image.__arrow_c_array__()  # Pillow's own bytes, four a pixel, for as long as it is held
        except ValueError:  # in several blocks, of before the block's size was set
            return None
        source = _ArrowArray.from_address(pointer_of(lent, b"arrow_array")).children[0].contents.buffers[1]
        left, top, right, bottom = box
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        ended = call(source, *image.size, *size, left, top, right - left, bottom - top, resampling, pixels.ctypes.data)
        if ended == _NO_MEMORY:
            raise MemoryError(f"no memory to resize {image.size} to {size}")
        if ended:
            raise ValueError(f"expected a box inside {size} and a filter that Pillow's resize has, got {box} and {resampling!r}")
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


# --- compiling --------------------------------------------------------------------------------------------------------


def compiled_file() -> Path:
    """Where the compiled source lies, or would: its name has the hash of source and flags, and the machine."""
    return SOURCES[0].with_name(f"_resample-{_fingerprint()}-{sys.platform}-{platform.machine().lower()}.so")


def _fingerprint() -> str:
    content = b"\0".join([*(source.read_bytes() for source in SOURCES), " ".join(FLAGS).encode()])
    return hashlib.sha256(content).hexdigest()[:12]


def compile_here() -> Path:
    """The compiled file, made where it is not there yet; older ones go. Raises RuntimeError with what lacks, or the compiler's words."""
    path = compiled_file()
    if path.exists():
        return path
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("there is no C compiler here")
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        subprocess.run([compiler, *FLAGS, "-o", str(unfinished), str(SOURCES[0]), "-lm"], check=True, capture_output=True, text=True)
        for older in path.parent.glob(path.name.replace(_fingerprint(), "*")):
            older.unlink()
        unfinished.rename(path)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{compiler} cannot compile {SOURCES[0].name}:\n{error.stderr}") from error
    except OSError as error:
        raise RuntimeError(f"{path.name} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def main() -> None:
    """Compile, and say what resizes pictures from now on. Never fails: Pillow can do it as well."""
    try:
        compile_here()
    except RuntimeError as error:
        print(f"pictures are resized by Pillow, same pixels but slower: {error}; {REMEDY}")
    else:
        print(f"pictures are resized by {'Pillow, same pixels but slower: ' if way().name == 'pillow' else ''}{way().why}")


if __name__ == "__main__":
    main()
