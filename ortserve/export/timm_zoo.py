"""`timm:NAME`: any classifier of PyTorch Image Models, prepared as its own data config says."""

from __future__ import annotations

import difflib
import math
import os
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch

from ortserve.errors import SourceError
from ortserve.export.chatter import quiet
from ortserve.export.checkpoint import load_weights
from ortserve.export.labels import model_name, read_labels
from ortserve.export.loaded import Loaded
from ortserve.export.module import from_module
from ortserve.export.options import Options
from ortserve.export.preprocessing import decide
from ortserve.manifest import Preprocessing, Source, sha256_of

PREFIX = "timm:"
_data: Any = timm.data  # half typed


def load(options: Options) -> Loaded:
    """The model of that name. Raises SourceError for an unknown name, weights that cannot be had, or a way of cropping that is not ours."""
    name = options.source[len(PREFIX) :]
    _check(name)
    labels = read_labels(options.labels)
    asked = options.weights or "DEFAULT"
    model: Any = _model(name, asked, labels, options.seed)
    digest = None
    if asked not in ("DEFAULT", "random"):
        path = Path(asked).expanduser()
        if not path.suffix:
            raise SourceError(f"--weights {asked}: for timm choose DEFAULT (as in {PREFIX}resnet18.a1_in1k), random, or a FILE")
        load_weights(model, path)
        digest = sha256_of(path)
    if labels is None and (subset := _data.infer_imagenet_subset(model)):
        info = _data.ImageNetInfo(subset)
        labels = tuple(info.index_to_description(index) for index in range(info.num_classes()))
    tag = (model.pretrained_cfg or {}).get("tag") or "DEFAULT"
    shown = {"random": f"random (seed {options.seed})", "DEFAULT": tag}.get(asked, Path(asked).name)
    source = Source(kind="timm", reference=name, weights=shown, weights_sha256=digest)
    return from_module(
        model, model_name(name), labels, preprocessing(options, _data.resolve_model_data_config(model), name), source, ("timm",)
    )


def preprocessing(options: Options, config: dict[str, Any], name: str) -> Preprocessing:
    """What `timm.data.create_transform` makes of the config, with its roundings. Raises SourceError where that cannot be told so."""
    channels, height, width = config["input_size"]
    if channels != 3 or config["crop_mode"] == "border" or config["interpolation"] not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise SourceError(
            f"{PREFIX}{name} takes {channels} channels, {config['crop_mode']} crop, {config['interpolation']}: expected RGB, a crop of the "
            "centre or a squashed picture, and a plain interpolation; export it to ONNX and give --resize-mode"
        )
    height, width = options.input_size or (height, width)
    if config["crop_mode"] == "center" and height != width:
        raise SourceError(f"{PREFIX}{name} crops {height}x{width}: a crop is prepared as timm does it only where it is square")
    scaled = math.floor(min(height, width) / config["crop_pct"])
    facts: dict[str, Any] = {
        "size": (height, width), "mean": config["mean"], "std": config["std"], "interpolation": config["interpolation"]
    }  # fmt: skip
    if config["crop_mode"] == "center":
        return decide(options, resize_size=scaled, **facts)
    decided = decide(options, **facts)
    if options.resize_mode not in (None, "stretch"):
        return decided
    cut = height == width and scaled > height
    return decided.model_copy(update={"mode": "stretch", "resize_size": scaled if cut else None})


def _check(name: str) -> None:
    if timm.is_model(name.partition(".")[0]):
        return
    near = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of its {len(timm.list_models())} models, as {PREFIX}resnet18"
    raise SourceError(f"SOURCE {PREFIX}{name}: timm {timm.__version__} has no such model: {hint}")


def _model(name: str, asked: str, labels: tuple[str, ...] | None, seed: int) -> torch.nn.Module:
    """The model with timm's own weights, or with random ones, its head for the labels then."""
    pretrained = asked == "DEFAULT"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sizes: dict[str, Any] = {} if pretrained or labels is None else {"num_classes": len(labels)}
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seed)
            model: torch.nn.Module = timm.create_model(name, pretrained=pretrained, **sizes)
    except Exception as error:  # the hub's, the network's and timm's own share no base
        reason = " ".join(str(error).split())[:160]
        if not pretrained:
            raise SourceError(f"timm cannot make {name} ({type(error).__name__}: {reason})") from error
        raise SourceError(
            f"timm's weights of {name} could not be had ({type(error).__name__}: {reason}): choose --weights random, --weights FILE "
            "(.pth, .pt, .th, .safetensors), or try again where the network allows it"
        ) from error
    return model
