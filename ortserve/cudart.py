"""CUDA's libraries: found wherever NVIDIA's wheels lie, and the few calls of its runtime that ONNX Runtime's Python binding lacks.

Without effect where there is no such library.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every device

# What onnxruntime-gpu 1.31's CUDA provider opens, in the order they need each other, and the wheel that has it.
LIBRARIES = {
    "libcublasLt.so.13": "nvidia-cublas",
    "libcublas.so.13": "nvidia-cublas",
    "libnvrtc.so.13": "nvidia-cuda-nvrtc",
    "libcurand.so.10": "nvidia-curand",
    "libcufft.so.12": "nvidia-cufft",
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
}


def load_wheels() -> None:
    """Open the libraries of NVIDIA's wheels in every folder of the import path; those that lie elsewhere are left to the loader.

    `onnxruntime.preload_dlls` looks beside onnxruntime alone. With it in one folder and torch, which brought the wheels, in another, it
    would find none; of a library that is open, the loader knows the name.
    """
    found = find_spec("nvidia")  # a namespace: every wheel adds to it
    roots = [Path(root) for root in (found.submodule_search_locations or ())] if found else []
    for name in LIBRARIES:
        for path in (root / folder / "lib" / name for root in roots for folder in ("cu13", "cudnn")):
            if path.is_file():
                try:
                    ctypes.CDLL(str(path))
                except OSError:
                    continue  # it lacks a library of its own; ONNX Runtime will say which
                break


def missing_libraries() -> list[str]:
    """The wheels whose libraries neither the import path nor the loader has. After `load_wheels`."""
    missing = []
    for name, wheel in LIBRARIES.items():
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(f"{wheel} ({name})")
    return missing


def pin(buffer: NDArray[Any]) -> bool:
    """Page-lock a host buffer for as long as it lives, so that copies to the GPU need no second staging; True where that worked.

    A refusal (limits on locked memory) costs speed, not correctness, so it is reported to the caller and not raised.
    """
    runtime = _library()
    if runtime is None:
        return False
    address = ctypes.c_void_p(buffer.ctypes.data)
    status: int = runtime.cudaHostRegister(address, ctypes.c_size_t(buffer.nbytes), ctypes.c_uint(_PORTABLE))
    if status == 0:
        # Memory that is freed while registered could not be registered by its next owner. At exit the driver does it.
        weakref.finalize(buffer, runtime.cudaHostUnregister, address).atexit = False
    return status == 0


def use_device(device_id: int) -> None:
    """Make that GPU the calling thread's, so that its copies do not make a context, of some hundred MB, on the first GPU."""
    if (runtime := _library()) is not None:
        runtime.cudaSetDevice(ctypes.c_int(device_id))


@cache
def _library() -> Any:
    """The library, or None. The one that ONNX Runtime uses is found first: `preload_dlls` has opened it by that name."""
    for name in ("libcudart.so.13", "libcudart.so.12", "libcudart.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
