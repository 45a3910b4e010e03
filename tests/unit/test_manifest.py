"""The manifest: written and read back unchanged, and every kind of damage named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ortserve.errors import ModelError
from ortserve.manifest import (
    MANIFEST_FILENAME,
    Agreement,
    Manifest,
    ParityReport,
    Preprocessing,
    Source,
    TensorSpec,
    Variant,
    sha256_of,
)

ONNX = b"not really a graph"


def manifest(file: str = "model-fp32.onnx") -> Manifest:
    parity = ParityReport(
        reference="PyTorch fp32",
        provider="CPUExecutionProvider",
        checks=(),
        agreement=Agreement(measure="top-1 agreement", value=None, limit=1.0, samples=0, passed=True, note="not measurable"),
        passed=True,
        failures=(),
    )
    return Manifest(
        name="tiny",
        task="image-classification",
        inputs=(TensorSpec(name="pixels", dtype="uint8", shape=("batch", 8, 8, 3)),),
        outputs=(TensorSpec(name="probabilities", dtype="float32", shape=("batch", 2)),),
        labels=("no", "yes"),
        preprocessing=Preprocessing(mode="stretch", height=8, width=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        max_batch=4,
        variants={
            "fp32": Variant(file=file, sha256=hashlib.sha256(ONNX).hexdigest(), size_bytes=len(ONNX), nodes=1, opset=20, parity=parity)
        },
        source=Source(kind="python", reference="net.py:build", weights="trained"),
        versions={"torch": "2.15.0"},
        created_at="2026-01-01T00:00:00Z",
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package's folder in a store: NAME/VERSION with the manifest and its one file."""
    folder = tmp_path / "tiny" / "v1"
    folder.mkdir(parents=True)
    manifest().write(folder)
    (folder / "model-fp32.onnx").write_bytes(ONNX)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_FILENAME
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_read_gives_what_was_written(package: Path) -> None:
    assert Manifest.read(package) == manifest()


def test_verified_path_is_the_file(package: Path) -> None:
    assert Manifest.read(package).verified_path(package, "fp32") == package / "model-fp32.onnx"


def test_sha256_of_is_the_standard_one(package: Path) -> None:
    assert sha256_of(package / "model-fp32.onnx") == hashlib.sha256(ONNX).hexdigest()


def test_missing_manifest(package: Path) -> None:
    (package / MANIFEST_FILENAME).unlink()
    with pytest.raises(ModelError, match=r"tiny:v1 has no manifest\.json.*build it again"):
        Manifest.read(package)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "tiny"}'])
def test_damaged_manifest(package: Path, text: str) -> None:
    (package / MANIFEST_FILENAME).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"manifest\.json of tiny:v1 is damaged at"):
        Manifest.read(package)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"schema_version": 2}, "schema_version"),
        ({"colour": "blue"}, "colour"),
        ({"variants": {"fp8": {}}}, r"variants\.fp8"),
    ],
)
def test_a_value_that_cannot_be_is_located(package: Path, changes: dict[str, Any], where: str) -> None:
    edit(package, **changes)
    with pytest.raises(ModelError, match=rf"damaged at {where}"):
        Manifest.read(package)


@pytest.mark.parametrize("file", ["../other/model.onnx", "/etc/passwd", "sub/model.onnx", "..", ""])
def test_a_file_outside_the_package_is_refused(package: Path, file: str) -> None:
    manifest(file).write(package)
    with pytest.raises(ModelError, match=r"expected a file name inside the package|the package is damaged"):
        Manifest.read(package).verified_path(package, "fp32")


def test_other_bytes_are_refused(package: Path) -> None:
    (package / "model-fp32.onnx").write_bytes(ONNX + b"!")
    with pytest.raises(ModelError, match=r"model-fp32\.onnx is damaged: expected sha256 .*, found .*; build or import"):
        Manifest.read(package).verified_path(package, "fp32")


def test_missing_file_is_named(package: Path) -> None:
    (package / "model-fp32.onnx").unlink()
    with pytest.raises(ModelError, match=r"lacks its file model-fp32\.onnx"):
        Manifest.read(package).verified_path(package, "fp32")


def test_a_symlink_is_refused_even_to_the_right_bytes(package: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.onnx"
    elsewhere.write_bytes(ONNX)
    (package / "model-fp32.onnx").unlink()
    (package / "model-fp32.onnx").symlink_to(elsewhere)
    with pytest.raises(ModelError, match="lacks its file"):
        Manifest.read(package).verified_path(package, "fp32")


def test_a_folder_in_place_of_the_file_is_refused(package: Path) -> None:
    (package / "model-fp32.onnx").unlink()
    (package / "model-fp32.onnx").mkdir()
    with pytest.raises(ModelError, match="lacks its file"):
        Manifest.read(package).verified_path(package, "fp32")


def test_a_precision_that_was_not_built_names_those_that_were(package: Path) -> None:
    with pytest.raises(ModelError, match=r"has no int8 variant, only fp32: build it with --precision"):
        Manifest.read(package).verified_path(package, "int8")
