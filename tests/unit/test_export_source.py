"""SOURCE told apart, options parsed, pre-processing decided, labels read: each mistake ends in one line that names the remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torchvision.models import get_model_weights

from build_model import parse_precisions, parse_size
from ortserve.errors import CalibrationError, SourceError
from ortserve.export.labels import model_name, read_labels
from ortserve.export.options import Options
from ortserve.export.pictures import divided, read_folder, spread
from ortserve.export.preprocessing import decide
from ortserve.export.source import load
from ortserve.export.tasks import rows
from ortserve.export.tasks.classes import limits_for
from ortserve.export.wrapper import Packaged, TorchReference
from ortserve.manifest import Preprocessing


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def imports() -> Iterator[None]:
    """Leaves sys.path and sys.modules as they were."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("240x320", (240, 320)), ("240X320", (240, 320))])
def test_sizes_are_parsed(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "7", "224x", "224x224x3", "-224", "1e3", "5000"])
def test_bad_sizes_are_usage_errors(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="as in 224 or 240x320"):
        parse_size(text)


def test_precisions_are_parsed_in_order() -> None:
    assert parse_precisions("int8, fp32") == ("fp32", "int8")
    with pytest.raises(typer.BadParameter, match="'bf16'"):
        parse_precisions("fp32,bf16")


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "inception_v3", "swin_v2_b", "efficientnet_b0"])
def test_torchvision_preprocessing_and_labels_are_those_of_its_default_weights(name: str) -> None:
    from ortserve.export.torchvision_zoo import _preprocessing

    weights = get_model_weights(name).DEFAULT
    transform, ours = weights.transforms(), _preprocessing(Options(source=name), weights)
    assert (ours.mode, [ours.height], [ours.resize_size]) == ("crop", transform.crop_size, transform.resize_size)
    assert list(ours.mean) == transform.mean
    assert list(ours.std) == transform.std
    assert ours.interpolation == transform.interpolation.value


def test_command_line_overrides_keep_the_proportion_of_the_crop() -> None:
    wide = decide(Options(source="x", input_size=(112, 112)), size=(224, 224), resize_size=256)
    assert (wide.height, wide.resize_size) == (112, 128)
    assert decide(Options(source="x", resize_mode="pad", input_size=(64, 96))).resize_size is None
    assert decide(Options(source="x")).resize_size == 256
    own = decide(Options(source="x", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
    assert own.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("std", [(0.0, 1.0, 1.0), (57.0, 57.0, 57.0), (float("nan"), 1.0, 1.0), (-0.2, 0.2, 0.2)])
def test_a_std_that_cannot_be_meant_is_refused(std: tuple[float, float, float]) -> None:
    with pytest.raises(SourceError, match="--std: expected three numbers"):
        decide(Options(source="x", std=std))


def test_wrapper_normalises_as_torchvision_does() -> None:
    class Flat(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    preprocessing = Preprocessing(mode="stretch", height=4, width=4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    logits, probabilities = Packaged(Flat(), preprocessing)(torch.from_numpy(pixels))
    want = TorchReference(Flat(), preprocessing)({"pixels": pixels})
    np.testing.assert_allclose(logits.numpy(), want["logits"], atol=1e-6)  # float32 rounding of values up to 2.7
    np.testing.assert_allclose(probabilities.numpy(), want["probabilities"], atol=1e-6)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("resnt50", "did you mean resnet50"),
        ("fcn_resnet50", "segmentation models"),
        ("nothing-like-it", "expected one of torchvision's"),
        ("none.py:build", "no such file"),
        ("none.onnx", "no such file"),
    ],
)
def test_unknown_sources_are_named_with_a_hint(source: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        load(Options(source=source), silent)


def test_torchvision_weights_of_an_unknown_name_list_the_choices() -> None:
    with pytest.raises(SourceError, match=r"DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, random, or a FILE"):
        load(Options(source="resnet50", weights="BEST"), silent)


def test_random_weights_follow_the_seed(imports: None) -> None:
    del imports
    black = np.zeros((1, 64, 64, 3), np.uint8)
    answers = [
        load(Options(source="squeezenet1_1", weights="random", seed=seed, input_size=(64, 64)), silent).reference({"pixels": black})[
            "logits"
        ]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])


def test_labels_of_another_count_give_a_torchvision_model_another_head(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n\n", encoding="utf-8")
    loaded = load(Options(source="squeezenet1_1", weights="random", labels=labels, input_size=(64, 64)), silent)
    assert loaded.facts["labels"] == ("cat", "dog")
    assert loaded.reference({"pixels": np.zeros((1, 64, 64, 3), np.uint8)})["logits"].shape == (1, 2)


@pytest.mark.parametrize(
    ("code", "factory", "words"),
    [
        ("def build(): return 3", "build", "made a int"),
        ("def build(): raise RuntimeError('no data')", "build", "RuntimeError: no data"),
        ("def make(): pass", "build", "one of make"),
        ("import nothing_of_that_name", "build", "cannot be imported"),
        ("import torch\ndef build(): return torch.nn.Linear(2, 2)", "build", "--input-size"),
        ("import torch\nclass N(torch.nn.Module):\n  def forward(self, x): return x, x\nbuild = N", "build", "got tuple"),
        ("import torch\nclass N(torch.nn.Module):\n  def forward(self, x): return x\nbuild = N", "build", r"got \[2, 3, 224, 224\]"),
    ],
)
def test_factories_that_do_not_fit_end_in_one_line(tmp_path: Path, imports: None, code: str, factory: str, words: str) -> None:
    del imports
    (tmp_path / "user_net.py").write_text(code, encoding="utf-8")
    with pytest.raises(SourceError, match=words) as caught:
        load(Options(source=f"{tmp_path / 'user_net.py'}:{factory}"), silent)
    assert "\n" not in str(caught.value)


def test_labels_are_counted_and_never_empty(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffa b\nü\n", encoding="utf-8")
    assert read_labels(path) == ("a b", "ü")
    path.write_text("a\n\nb\n", encoding="utf-8")
    with pytest.raises(SourceError, match="line 2 is empty"):
        read_labels(path)
    with pytest.raises(SourceError, match="cannot be read"):
        read_labels(tmp_path / "none.txt")
    path.write_text("a\nb\nc\n", encoding="utf-8")
    (tmp_path / "user_two.py").write_text("import torch\nclass N(torch.nn.Module):\n  def forward(s, x): return x.mean((2, 3))[:, :2]\n")
    with pytest.raises(SourceError, match="expected 2 labels"):
        load(Options(source=f"{tmp_path / 'user_two.py'}:N", labels=path), silent)


@pytest.mark.parametrize(("text", "name"), [("ResNet 50", "resnet-50"), ("_net.v2_", "net.v2"), ("模型", "model")])
def test_names_become_what_bentoml_takes(text: str, name: str) -> None:
    assert model_name(text) == name


def test_limits_follow_the_command_line() -> None:
    assert limits_for("fp32", Options(source="x")).logits == 1e-4
    assert limits_for("fp32", Options(source="x", tolerance=1e-6)).probabilities_far == 1e-6
    assert limits_for("int8", Options(source="x", min_agreement_int8=0.9)).agreement == 0.9
    with pytest.raises(SourceError, match="--tolerance"):
        limits_for("fp32", Options(source="x", tolerance=0.0))
    with pytest.raises(SourceError, match="--min-agreement-fp16"):
        limits_for("fp16", Options(source="x", min_agreement_fp16=99.5))


def test_pictures_are_parted_where_there_are_enough(tmp_path: Path) -> None:
    few, many = np.zeros((200, 2, 2, 3), np.uint8), np.zeros((300, 2, 2, 3), np.uint8)
    assert (rows(divided(few, 200).calibration), rows(divided(few, 200).measurement)) == (100, 200)
    assert "also calibrated on" in divided(few, 200).note
    assert (rows(divided(many, 200).calibration), rows(divided(many, 200).measurement)) == (100, 200)
    assert "none of them" in divided(many, 200).note
    assert spread(3, 10) == [0, 1, 2]
    assert len(spread(5000, 1000)) == 1000
    how = decide(Options(source="x"))
    with pytest.raises(CalibrationError, match="no picture in it"):
        read_folder(tmp_path, how, silent, enough=200)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match=r"broken\.png cannot be read"):
        read_folder(tmp_path, how, silent, enough=200)
    with pytest.raises(CalibrationError, match="found nothing"):
        read_folder(tmp_path / "none", how, silent, enough=200)
