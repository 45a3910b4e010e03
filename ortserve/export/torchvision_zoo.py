"""Torchvision's classifiers and detectors by name, with the labels and the pre-processing of their default weights."""

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
_BACKGROUND = "__background__"  # as torchvision calls it
# A server that says nothing for this long is taken for unreachable.
DOWNLOAD_TIMEOUT_S = 30.0


def load(options: Options) -> Loaded:
    """The model of that name. Raises SourceError for an unknown name, another kind of model, or weights that cannot be had."""
    name = options.source.lower()
    detector = _is_detector(name, options)
    weights_enum = get_model_weights(name)
    asked = options.weights or "DEFAULT"
    published: Any = getattr(weights_enum, asked, None) if asked != "random" else None
    facts: Any = published or weights_enum.DEFAULT
    labels = read_labels(options.labels)
    if labels is None:
        labels = tuple(facts.meta["categories"])
    elif detector and published is None:
        labels = (_BACKGROUND, *labels)  # theirs begin with it
    # A model for other labels than the published ones has another head.
    sizes: dict[str, Any] = {"num_classes": len(labels)} if published is None else {}
    if detector:
        sizes["weights_backbone"] = None  # else theirs would be downloaded
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
    if detector:
        from ortserve.export.torchvision_detectors import from_torchvision

        return from_torchvision(model, labels, source, options)
    return from_module(model, name, labels, _preprocessing(options, facts), source, ("torchvision",))


def _is_detector(name: str, options: Options) -> bool:
    """Whether the name is one of a detector and not of a classifier. Raises SourceError where it is neither, or not for the task."""
    known = list_models(module=torchvision.models)
    detectors = list_models(module=torchvision.models.detection)
    if name in known or name in detectors:
        kind = "object-detection" if name in detectors else "image-classification"
        if options.task not in (None, kind):
            raise SourceError(f"--task {options.task}: torchvision's {name} is for {kind}: leave --task out")
        return name in detectors
    if name in list_models():
        module = get_model_builder(name).__module__.split(".")[2]
        raise SourceError(f"{name} is one of torchvision's {module} models: only its classification and detection models are served")
    known = [*known, *detectors]
    near = difflib.get_close_matches(name, known, n=3)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"expected one of torchvision's {len(known)} classifiers and detectors, as resnet50"
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
