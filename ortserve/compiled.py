"""The C of `native/`, for pixels: compiled where it runs, and used only where it gives Pillow's.

It lies beside its source (`python -m ortserve.compile`), under a name that says which source and which machine: a stale one is never
loaded. What cannot be loaded, or gives other pixels than the installed Pillow, is not used: then Pillow does the same, slower, and
`resample.way` and `jpeg.way` tell that, and why.
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
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import PIL
from PIL import Image

logger = logging.getLogger("ortserve.compiled")

FOLDER = Path(__file__).with_name("native")
# No flag for the arithmetic of floats: the compiler's default is what Pillow's own code is compiled with.
FLAGS = ("-std=gnu11", "-O3", "-fwrapv", "-fPIC", "-shared", "-pthread")
LIBRARIES = ("-lm", "-ldl")
REMEDY = "install gcc and the C library's headers, then run python -m ortserve.compile"

DONE, DECLINED = 0, 3  # of pixels.h
_NO_MEMORY = 2  # and 1: nonsense was asked for

Function = TypeVar("Function")


class Way(NamedTuple):
    """Which of the two does something with pictures in this process, and why."""

    name: Literal["compiled", "pillow"]
    why: str

    def __str__(self) -> str:
        return self.why if self.name == "compiled" else f"Pillow, same pixels but slower: {self.why}"


def tried(make: Callable[[ctypes.CDLL], Function], agrees: Callable[[Function], bool]) -> tuple[Function | None, Way]:
    """What `make` takes out of the compiled file where that `agrees` with Pillow, and which way that makes, with the remedy.

    `make` raises OSError or AttributeError for what is not in the file; either may raise ImportError, with what lacks beneath it.
    """
    path = compiled_file()
    if not path.exists():
        return None, Way("pillow", f"there is no {path.name}; {REMEDY}")
    try:
        function = make(ctypes.CDLL(str(path)))
        same = agrees(function)
    except (OSError, AttributeError) as error:
        return None, Way("pillow", f"{path.name} cannot be used ({error}); remove it, {REMEDY}")
    except ImportError as error:
        return None, Way("pillow", str(error))
    if not same:
        why = f"Pillow {PIL.__version__} has other pixels than {path.name}"
        logger.warning("%s, which was made for Pillow 13: use the one of requirements/", why)
        return None, Way("pillow", why)
    return function, Way("compiled", path.name)


def check(ended: int, source: tuple[int, int], size: tuple[int, int], box: tuple[int, int, int, int], resampling: Image.Resampling) -> None:
    """Raises what became of a call that gave no pixels: MemoryError, ValueError."""
    if ended == _NO_MEMORY:
        raise MemoryError(f"no memory to resize {source} to {size}")
    if ended != DONE:
        raise ValueError(f"expected a box inside {size} and a filter that Pillow's resize has, got {box} and {resampling!r}")


def compiled_file() -> Path:
    """Where the compiled source lies, or would: its name has the hash of source and flags, and the machine."""
    return FOLDER / f"_pixels-{_fingerprint()}-{sys.platform}-{platform.machine().lower()}.so"


def sources() -> list[Path]:
    """Every file that the compiler reads, in order."""
    return sorted(FOLDER.rglob("*.[ch]"))


def _fingerprint() -> str:
    content = b"\0".join([*(source.read_bytes() for source in sources()), " ".join((*FLAGS, *LIBRARIES)).encode()])
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
    code = [str(source) for source in sources() if source.suffix == ".c"]
    try:
        subprocess.run([compiler, *FLAGS, "-o", str(unfinished), *code, *LIBRARIES], check=True, capture_output=True, text=True)
        for older in FOLDER.glob(path.name.replace(_fingerprint(), "*")):
            older.unlink(missing_ok=True)
        unfinished.rename(path)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{compiler} cannot compile {FOLDER.name}/:\n{error.stderr}") from error
    except OSError as error:
        raise RuntimeError(f"{path.name} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return path
