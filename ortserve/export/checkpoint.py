"""Weights from a file into a module: research checkpoints unwrapped, nothing unpickled that could run code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ortserve.errors import SourceError

TORCH_SUFFIXES = frozenset({".pth", ".pt", ".th"})
SAFETENSORS = ".safetensors"
# Where training scripts put the weights in their checkpoint, the usual names first.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "weights")
# What DataParallel and torch.compile put in front of every name.
PREFIXES = ("module.", "_orig_mod.")
# A list of keys in an error shows this many.
SHOWN = 3

State = dict[str, torch.Tensor]


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of `path` into `model`, every one of them and no other.

    Raises SourceError where the file cannot be read safely or does not fit; it names the first keys and the remedy.
    """
    state = without_prefixes(unwrapped(_read(path), path))
    own = model.state_dict()
    # Counts of training batches: not used in evaluation mode, absent from checkpoints of PyTorch before 0.4.1.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}" for key in own if key in state and state[key].shape != own[key].shape
    ]
    faults = [
        f"{len(keys)} {what} ({', '.join(keys[:SHOWN])}{', …' if len(keys) > SHOWN else ''})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if faults:
        raise SourceError(
            f"the weights in {path.name} do not fit the model, of {len(own)} keys: {'; '.join(faults)}: "
            "build the model with the arguments it was trained with (classes, width, depth), or give the matching file"
        )
    model.load_state_dict(state, strict=False)


def unwrapped(data: Any, path: Path) -> State:
    """The tensors by name from a checkpoint: the dict itself, or the one inside under one of `WRAPPERS`, at any depth.

    Raises SourceError where there is no such dict.
    """
    found = data
    while isinstance(found, Mapping) and not _is_state(found):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not _is_state(found):
        shown = f"a dict with {', '.join(map(str, list(found)[:5]))}" if isinstance(found, Mapping) else type(found).__name__
        raise SourceError(
            f"{path.name} holds no weights: expected tensors by name, or such a dict under one of {', '.join(WRAPPERS)}, got {shown}: "
            'save it again with torch.save({"state_dict": model.state_dict()}, ...)'
        )
    return {str(key): value for key, value in found.items()}


def without_prefixes(state: State) -> State:
    """The same tensors, their names as the bare model has them: without DataParallel's and torch.compile's prefixes."""
    while prefix := next((item for item in PREFIXES if all(key.startswith(item) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return {key.replace("._orig_mod.", "."): value for key, value in state.items()}


def _is_state(data: Mapping[Any, Any]) -> bool:
    return bool(data) and all(isinstance(value, torch.Tensor) for value in data.values())


def _read(path: Path) -> Any:
    """What the file holds. PyTorch's reader is told `weights_only`: a pickle that wants to run anything else is refused."""
    if not path.is_file():
        raise SourceError(f"--weights {path}: no such file: expected one ending in {', '.join(sorted(TORCH_SUFFIXES))} or {SAFETENSORS}")
    suffix = path.suffix.lower()
    if suffix == SAFETENSORS:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path.name} is not a whole safetensors file ({error}): copy or download it again") from error
    if suffix not in TORCH_SUFFIXES:
        raise SourceError(f"--weights {path.name}: expected a file ending in {', '.join(sorted(TORCH_SUFFIXES))} or {SAFETENSORS}")
    from pickle import UnpicklingError

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise SourceError(
            f"{path.name} holds more than tensors, and loading it could run code of its maker: where it was made, "
            "save the tensors alone with torch.save(model.state_dict(), ...), or as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SourceError(
            f"{path.name} is not a whole PyTorch checkpoint ({reason[:200]}): copy it again, or save its state_dict()"
        ) from error
