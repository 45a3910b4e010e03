"""What TensorRT is told of a model: the shapes its engine is built for, and where engine and timings are kept.

An engine takes minutes to build and fits one file, one GPU, one TensorRT and one range of shapes. It is built before the service is ready
and kept in a folder of its own for each such combination, so that nothing is ever to be invalidated: another combination, another folder.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import onnxruntime as ort

from ortserve import gpu
from ortserve.errors import ProviderError
from ortserve.execution import Batching, Execution
from ortserve.manifest import Manifest, Precision, TensorSpec

logger = logging.getLogger("ortserve.tensorrt")

CACHE_ENV = "ORTSERVE_ENGINE_CACHE"  # the folder for engines; ~/.cache/ortserve/engines where unset, which XDG_CACHE_HOME moves

# In the order they need each other; the builder's resource is opened by TensorRT itself, beside them.
_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")


def load_libraries() -> None:
    """Open TensorRT 10's libraries for the process: the loader's, else those of the wheels `tensorrt-cu13-libs` or `tensorrt-cu12-libs`.

    Raises ProviderError where one is missing: ONNX Runtime would say so in its log and take another provider.
    """
    found = find_spec("tensorrt_libs")
    folders = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    for name in _LIBRARIES:
        errors = []
        for candidate in (name, *(str(folder / name) for folder in folders)):
            try:
                ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
                break
            except OSError as error:
                errors.append(str(error))
        else:
            raise ProviderError(
                f"TensorRT's {name} cannot be loaded ({'; '.join(errors)}): install TensorRT 10 for this CUDA (tensorrt-cu13) or put "
                "its folder on LD_LIBRARY_PATH, or choose a profile whose execution names CUDAExecutionProvider"
            )


def version() -> str:
    """TensorRT's version as its library says it, "101401" for 10.14.1, or "unknown". After `load_libraries`."""
    try:
        number: int = ctypes.CDLL(_LIBRARIES[0]).getInferLibVersion()
    except (OSError, AttributeError):
        return "unknown"
    return str(number)


def prepared(execution: Execution, manifest: Manifest, precision: Precision) -> Execution:
    """The `fitted` execution with the options that are made from the model. Makes the cache's folder, and logs whether an engine is built.

    Raises ProviderError where the folder cannot be written.
    """
    longest = manifest.tokenization.max_tokens if manifest.tokenization else 1
    shapes = profile_shapes(manifest.inputs, execution.batching, longest)
    folder = engine_folder(execution, manifest.variants[precision].sha256, shapes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ProviderError(
            f"TensorRT's engines cannot be kept in {folder} ({error.strerror}): name a folder that this user may write with {CACHE_ENV}, "
            "or choose a profile whose execution names CUDAExecutionProvider"
        ) from None
    if any(folder.glob("*.engine")):
        logger.info("TensorRT engine of %s %s taken from %s", manifest.name, precision, folder)
    else:
        logger.warning("building the TensorRT engine of %s %s, which takes minutes; it is kept in %s", manifest.name, precision, folder)
    fp16 = {"trt_fp16_enable": True} if precision == "fp16" else {}
    options = {**fp16, **execution.provider_options, **shapes, **_caches(folder)}
    return execution.model_copy(update={"provider_options": options})


def profile_shapes(inputs: Sequence[TensorSpec], batching: Batching, longest: int) -> dict[str, str]:
    """`trt_profile_{min,opt,max}_shapes`: one row up to the largest batch, and tuned for that one: speed counts where there is load.

    Rows of any length: one token up to `longest`, tuned for the longest that shares a batch of all its rows.
    """
    rows = batching.max_batch_size
    usual = longest if batching.max_batch_tokens is None else max(1, min(longest, batching.max_batch_tokens // rows))
    # Everywhere or nowhere: TensorRT's parser wants a range for each input, those of fixed shape among them.
    return {
        "trt_profile_min_shapes": _shapes(inputs, 1, 1),
        "trt_profile_opt_shapes": _shapes(inputs, rows, usual),
        "trt_profile_max_shapes": _shapes(inputs, rows, longest),
    }


def engine_folder(execution: Execution, model_sha256: str, shapes: Mapping[str, str]) -> Path:
    """The folder for the engine of this file, on this GPU, with these versions, shapes and options."""
    root = os.environ.get(CACHE_ENV)
    base = Path(root).expanduser() if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ortserve" / "engines"
    told = sorted({**execution.provider_options, **shapes}.items())
    readable = f"{_device_name(execution)}-ort{ort.__version__}-trt{version()}"
    return base / model_sha256[:16] / readable / sha256(repr(told).encode()).hexdigest()[:12]


def _device_name(execution: Execution) -> str:
    """The GPU's name in letters that a folder may have."""
    index = int(execution.provider_options.get("device_id", 0))
    found = gpu.devices()
    name = found[index].name if index < len(found) else f"gpu{index}"
    return re.sub(r"[^A-Za-z0-9.]+", "_", name)


def _caches(folder: Path) -> dict[str, str | bool]:
    return {
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": True,
        "trt_timing_cache_path": str(folder),
    }


def _shapes(inputs: Sequence[TensorSpec], rows: int, length: int) -> str:
    """ "pixels:8x224x224x3,...": the first free dimension of each input as `rows`, any other as `length`."""
    return ",".join(f"{spec.name}:{'x'.join(map(str, spec.concrete(rows, length)))}" for spec in inputs)
