"""An Ultralytics `.pt` or `.yaml`, where the user has installed that package: it is AGPL-3.0, so nothing here depends on it."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ortserve.errors import SourceError
from ortserve.export.chatter import quiet
from ortserve.export.labels import model_name, read_labels
from ortserve.export.loaded import Loaded
from ortserve.export.options import Options
from ortserve.export.preprocessing import decide_detector
from ortserve.export.torch_detector import from_detector
from ortserve.manifest import Source, sha256_of

# What the package would do by itself otherwise: ask the internet, and install what it misses.
_ALONE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}


def load(options: Options) -> Loaded:
    """The detector in that file: a trained `.pt`, or an untrained model of a `.yaml`.

    A `.pt` is a pickle and runs what it holds: it is for files from a source you trust. Raises SourceError where the package or the file
    is missing, or it is no detector.
    """
    path = Path(options.source).expanduser()
    trained = path.suffix.lower() == ".pt"
    if options.weights not in (None, "random") or (trained and options.weights is not None):
        raise SourceError(
            f"--weights {options.weights}: an Ultralytics .pt brings its weights, a .yaml has random ones: leave --weights out"
        )
    model = _loaded(path, trained, options.seed)
    head = model.model[-1]
    head.export, head.format = True, "onnx"  # the decoded tensor alone, as for their own export
    size = _size(model, options)
    names = [str(name) for _, name in sorted(model.names.items())]
    labels = read_labels(options.labels) or (None if names == [str(index) for index in range(len(names))] else tuple(names))
    return from_detector(
        model,
        name=model_name(path.stem),
        options=options,
        preprocessing=decide_detector(options, size=size),
        labels=labels or tuple(f"class_{name}" for name in names),
        source=Source(
            kind="ultralytics",
            reference=path.name,
            weights="its own" if trained else f"random (seed {options.seed})",
            weights_sha256=sha256_of(path) if trained else None,
        ),
        packages=("ultralytics",),
    )


def _loaded(path: Path, trained: bool, seed: int) -> Any:
    os.environ.update({name: os.environ.get(name, value) for name, value in _ALONE.items()})
    try:
        ultralytics: Any = import_module("ultralytics")
    except ImportError as error:
        raise SourceError(
            f"SOURCE {path.name} is Ultralytics' and needs their package, which is not here ({error}): pip install ultralytics "
            f"(AGPL-3.0), or where you have it: yolo export model={path.name} format=onnx, and give the .onnx"
        ) from error
    if trained and not path.is_file():
        raise SourceError(f"SOURCE {path}: no such file: expected a trained Ultralytics model")
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seed)
            model = ultralytics.YOLO(str(path)).model
    except Exception as error:  # theirs raise what they stumble over
        raise SourceError(f"Ultralytics cannot load {path.name} ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
    if getattr(model, "task", None) != "detect":
        raise SourceError(f"{path.name} is for Ultralytics' task {getattr(model, 'task', 'unknown')!r}: only detect is served")
    return model


def _size(model: Any, options: Options) -> tuple[int, int] | None:
    """The size it was trained at; SourceError where the one asked for does not fit its strides."""
    stride = int(model.stride.max())
    if options.input_size is not None and any(side % stride for side in options.input_size):
        raise SourceError(f"--input-size: {options.source} wants sides that are multiples of {stride}, got {options.input_size}")
    side = getattr(model, "args", {}).get("imgsz") if isinstance(getattr(model, "args", None), dict) else None
    return (side, side) if isinstance(side, int) else None
