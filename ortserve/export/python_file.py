"""`path/file.py:factory`: the user's own code, imported as `python file.py` would run it: its folder comes first."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ortserve.errors import SourceError
from ortserve.export.checkpoint import load_weights
from ortserve.export.labels import model_name, read_labels
from ortserve.export.loaded import Loaded
from ortserve.export.module import from_module
from ortserve.export.options import Options
from ortserve.export.preprocessing import decide, decide_detector
from ortserve.export.torch_detector import from_detector
from ortserve.manifest import Source, sha256_of


def _classifier(model: nn.Module, name: str, options: Options, source: Source) -> Loaded:
    return from_module(model, name, read_labels(options.labels), decide(options), source)


def _detector(model: nn.Module, name: str, options: Options, source: Source) -> Loaded:
    labels, preprocessing = read_labels(options.labels), decide_detector(options)
    return from_detector(model, name=name, options=options, preprocessing=preprocessing, labels=labels, source=source)


# How a module is packaged for a task: (module, name, options, source) -> Loaded.
_FOR_TASK: dict[str, Callable[[nn.Module, str, Options, Source], Loaded]] = {
    "image-classification": _classifier,
    "object-detection": _detector,
}


def load(options: Options) -> Loaded:
    """The module that the user's factory makes, with `--weights` in it.

    Raises SourceError where the file cannot be imported, has no such factory, or makes no `nn.Module`.
    """
    file, _, factory = options.source.rpartition(":")
    path = Path(file).expanduser()
    model = _made(_imported(path), path, factory, options.seed)
    weights = options.weights
    digest = None
    if weights == "DEFAULT":
        raise SourceError("--weights DEFAULT is for torchvision's names: give a FILE, random, or nothing where the factory loads its own")
    if weights is not None and weights != "random":
        load_weights(model, Path(weights).expanduser())
        digest = sha256_of(Path(weights).expanduser())
    shown = {None: "the factory's own", "random": f"random (seed {options.seed})"}.get(weights, Path(weights or "").name)
    source = Source(kind="python", reference=f"{path.name}:{factory}", weights=shown, weights_sha256=digest)
    task = options.task or "image-classification"
    if task not in _FOR_TASK:
        raise SourceError(f"--task {task}: a PyTorch module is packaged for one of {', '.join(_FOR_TASK)}: choose one of these")
    return _FOR_TASK[task](model, model_name(path.stem), options, source)


def _imported(path: Path) -> ModuleType:
    """The user's file as a module, under its own name and with its folder first on the path, so that its siblings import too."""
    if not path.is_file():
        raise SourceError(f"SOURCE {path}: no such file: expected FILE.py:FACTORY, as in nets/model.py:build")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"SOURCE {path}: Python cannot import it: expected a file ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # and left there: the code may import more while it runs
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SourceError(f"{path.name} cannot be imported ({_shown(error)}): run python {path.name} in its folder to see why") from error
    return module


def _made(module: ModuleType, path: Path, factory: str, seed: int) -> nn.Module:
    make: Any = getattr(module, factory, None)
    if not callable(make):
        known = [name for name, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
        raise SourceError(
            f"{path.name} has no callable {factory!r}: expected FILE.py:FACTORY with one of {', '.join(known) or 'its functions'}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = make()
        except Exception as error:
            raise SourceError(
                f"{path.name}:{factory} failed ({_shown(error)}): it is called without arguments; --debug shows the trace"
            ) from error
    if not isinstance(model, nn.Module):
        raise SourceError(f"{path.name}:{factory} made a {type(model).__name__}: expected a torch.nn.Module")
    return model


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
