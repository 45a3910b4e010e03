"""The few calls of CUDA's runtime that ONNX Runtime's Python binding lacks. Without effect where there is no such library."""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from typing import Any

from numpy.typing import NDArray

_PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every device


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
