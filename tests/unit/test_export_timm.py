"""timm: its data config reproduced bit for bit, random weights without a network, errors of one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
from PIL import Image
from sklearn.datasets import load_sample_images

from ortserve import images
from ortserve.errors import SourceError
from ortserve.export.options import Options
from ortserve.export.source import load
from ortserve.export.timm_zoo import preprocessing
from ortserve.profile import Limits

SIZES = [(640, 427), (300, 500), (224, 224), (257, 256), (1, 40), (90, 61)]
# Every way in which timm's own configs prepare a picture of one size: the crop, its rounding, the squeeze, the squeeze and then the crop.
CONFIGS = [
    {"crop_mode": "center", "crop_pct": 0.875, "interpolation": "bilinear", "input_size": (3, 224, 224)},
    {"crop_mode": "center", "crop_pct": 0.95, "interpolation": "bicubic", "input_size": (3, 288, 288)},
    {"crop_mode": "center", "crop_pct": 0.965, "interpolation": "bicubic", "input_size": (3, 237, 237)},
    {"crop_mode": "center", "crop_pct": 1.0, "interpolation": "bicubic", "input_size": (3, 160, 160)},
    {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic", "input_size": (3, 224, 224)},
    {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear", "input_size": (3, 160, 224)},
    {"crop_mode": "squash", "crop_pct": 0.954, "interpolation": "bicubic", "input_size": (3, 240, 240)},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config['crop_mode']} {config['crop_pct']} {config['input_size'][1]}")
def test_pixels_are_those_of_timms_own_transform(config: dict[str, object]) -> None:
    facts = {**config, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    theirs = timm.data.create_transform(**facts, is_training=False, normalize=False)
    how = preprocessing(Options(source="timm:x"), facts, "x")
    assert (how.mean, how.std) == (facts["mean"], facts["std"])
    for photograph in load_sample_images().images:
        for size in SIZES:
            file = io.BytesIO()
            Image.fromarray(photograph).resize(size).save(file, "PNG")
            have = images.load(file.getvalue(), how, Limits(), decoder="exact")
            want = theirs(Image.open(file).convert("RGB"))
            np.testing.assert_array_equal(have, want.permute(1, 2, 0).numpy())


def test_random_weights_need_no_network_and_bring_names_and_config() -> None:
    loaded = load(Options(source="timm:test_resnet.r160_in1k", weights="random"), lambda done, total: None)
    assert (loaded.source.kind, loaded.source.reference, loaded.source.weights) == ("timm", "test_resnet.r160_in1k", "random (seed 0)")
    config = timm.data.resolve_model_data_config(timm.create_model("test_resnet.r160_in1k"))
    how = loaded.facts["preprocessing"]
    assert (how.height, how.width) == config["input_size"][1:]
    assert (how.interpolation, how.mean, how.std) == (config["interpolation"], config["mean"], config["std"])
    assert loaded.facts["labels"][0] == "tench, Tinca tinca"


def test_labels_give_another_head(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    loaded = load(Options(source="timm:test_vit", weights="random", labels=tmp_path / "labels.txt"), lambda done, total: None)
    assert loaded.facts["labels"] == ("a", "b", "c")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("timm:resnet18x", {"weights": "random"}, "no such model: did you mean resnet18"),
        ("timm:test_resnet", {"weights": "V2"}, "choose DEFAULT .*random, or a FILE"),
    ],
)
def test_what_cannot_be_had_names_the_remedy(source: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        load(Options(source=source, **options), lambda done, total: None)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(SourceError, match=r"could not be had \(OSError: no route to the hub\): choose --weights random"):
        load(Options(source="timm:resnet18"), lambda done, total: None)


@pytest.mark.parametrize("config", [{"crop_mode": "border"}, {"input_size": (1, 28, 28)}, {"input_size": (3, 200, 100)}])
def test_a_config_that_is_not_ours_is_refused(config: dict[str, object]) -> None:
    facts = {**CONFIGS[0], "mean": (0, 0, 0), "std": (1, 1, 1), **config}
    with pytest.raises(SourceError, match="timm:x"):
        preprocessing(Options(source="timm:x"), facts, "x")
