"""Torchvision's classification models by name, with the labels and the pre-processing of their default weights."""

from __future__ import annotations

import difflib
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision
from torchvision.models import get_model_builder, get_model_weights, list_models
from torchvision.transforms import InterpolationMode

from ortserve.errors import SourceError
from ortserve.export.chatter import quiet
from ortserve.export.checkpoint import load_weights
from ortserve.export.labels import read_labels
from ortserve.export.loaded import Loaded
from ortserve.export.module import from_module
from ortserve.export.options import Options
from ortserve.export.preprocessing import Interpolation, decide
from ortserve.manifest import Preprocessing, Source, sha256_of

_INTERPOLATION: dict[InterpolationMode, Interpolation] = {
    InterpolationMode.NEAREST: "nearest",
    InterpolationMode.BILINEAR: "bilinear",
    InterpolationMode.BICUBIC: "bicubic",
    InterpolationMode.LANCZOS: "lanczos",
}
# A server that says nothing for this long is taken for unreachable.
DOWNLOAD_TIMEOUT_S = 30.0


def load(options: Options) -> Loaded:
    """The model of that name. Raises SourceError for an unknown name, another kind of model, or weights that cannot be had."""
    name = options.source.lower()
    _check(name)
    weights_enum = get_model_weights(name)
    asked = options.weights or "DEFAULT"
    published: Any = getattr(weights_enum, asked, None) if asked != "random" else None
    facts: Any = published or weights_enum.DEFAULT
    preprocessing = _preprocessing(options, facts)
    labels = read_labels(options.labels)
    if labels is None:
        labels = tuple(facts.meta["categories"])
    # A model for other labels than the published ones has another head.
    sizes = {"num_classes": len(labels)} if published is None else {}
    digest = None
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(options.seed)
        model = get_model_builder(name)(weights=None, **sizes)
    if published is not None:
        digest = _download(model, published, name)
    elif asked != "random":
        path = Path(asked).expanduser()
        if not path.suffix:
            choices = ", ".join(["DEFAULT", *(item.name for item in weights_enum), "random", "or a FILE"])
            raise SourceError(f"--weights {asked}: {name} has no weights of that name: choose {choices}")
        load_weights(model, path)
        digest = sha256_of(path)
    shown = f"random (seed {options.seed})" if asked == "random" else asked if published is not None else Path(asked).name
    source = Source(kind="torchvision", reference=name, weights=shown, weights_sha256=digest)
    return from_module(model, name, labels, preprocessing, source, ("torchvision",))


def _check(name: str) -> None:
    known = list_models(module=torchvision.models)
    if name in known:
        return
    if name in list_models():
        module = get_model_builder(name).__module__.split(".")[2]
        raise SourceError(f"{name} is one of torchvision's {module} models: only its classification models answer one class per picture")
    near = difflib.get_close_matches(name, known, n=3)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"expected one of torchvision's {len(known)} classification models, as resnet50"
    )
    raise SourceError(f"SOURCE {name!r} is not digits, FILE.py:FACTORY, a .onnx file or a torchvision model: {hint}")


def _preprocessing(options: Options, weights: Any) -> Preprocessing:
    """What torchvision's own transform for these weights does; its meta data is part of the package, nothing is downloaded."""
    transform = weights.transforms()
    [crop], [resize] = transform.crop_size, transform.resize_size
    return decide(
        options,
        size=(crop, crop),
        resize_size=resize,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=_INTERPOLATION[transform.interpolation],
    )


def _download(model: torch.nn.Module, weights: Any, name: str) -> str:
    """Put the published weights into the model; answers the sha256 of their file. PyTorch keeps it for the next time."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        with quiet():
            model.load_state_dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # URLError and timeouts are OSErrors; a wrong hash is a RuntimeError
        reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
        raise SourceError(
            f"torchvision's {weights.name} weights of {name} could not be downloaded ({reason}): choose --weights random, "
            "--weights FILE (.pth, .pt, .th, .safetensors), or try again where the network allows it"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return sha256_of(Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name)
