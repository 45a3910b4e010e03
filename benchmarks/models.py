"""What every system serves: two models, their weights, and the pictures they are asked about. Made once, kept under `benchmarks/work`."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.places import WORK, console, digest_of
from ortserve.manifest import Manifest
from tests.serving import DIGITS, ROOT, bentoml, bentoml_environment

HOME = WORK / "bentoml"
NETS = ROOT / "benchmarks" / "nets"
QUALITY = 91  # makes them 50 KB
PRECISIONS = "fp32,fp16,int8"
EXPORTER = "ortserve/export/**/*.py"  # of another one a package may be another, too


@dataclass(frozen=True)
class Model:
    """A package in the store, and its weights for those that serve PyTorch."""

    name: str
    folder: Path
    weights: Path

    @property
    def onnx(self) -> Path:
        """The graph, in fp32."""
        return self.folder / "fp32.onnx"

    @property
    def resize(self) -> int:
        """Pixels of the shorter side before the crop; 0 where there is none."""
        how = Manifest.read(self.folder).preprocessing
        return (how.resize_size if how is not None else None) or 0

    @property
    def sha256(self) -> str:
        """Of the graph in fp32."""
        return Manifest.read(self.folder).variants["fp32"].sha256


def resnet50() -> Model:
    """Torchvision's, random weights, in three precisions: on such weights the agreement of int8 means nothing, and none is asked for."""
    weights = WORK / "weights" / "resnet50.pth"
    if not weights.exists():
        console.print("making resnet50's weights (random, seed 0)")
        weights.parent.mkdir(parents=True, exist_ok=True)
        unfinished = weights.with_suffix(".part")
        _run(NETS / "resnet50.py", unfinished, *pictures(64, "fit"))
        unfinished.rename(weights)
    arguments = ("--weights", weights, "--precision", PRECISIONS, "--calibration", _folder(pictures(200, "calibration")))
    return _built("resnet50", "resnet50", weights, *arguments, "--min-agreement-fp16", "0", "--min-agreement-int8", "0")


def near_empty() -> Model:
    """A real graph that takes the same picture and does almost nothing."""
    weights = WORK / "weights" / "near_empty.pth"
    if not weights.exists():
        import torch

        from benchmarks.nets.near_empty import build

        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        torch.save(build().state_dict(), weights)
    return _built("near_empty", f"{NETS / 'near_empty.py'}:build", weights, "--weights", weights)


def digits() -> Model:
    """The embedded model."""
    if not (HOME / "models" / "digits" / "latest").exists():
        HOME.mkdir(parents=True, exist_ok=True)
        bentoml(HOME, "models", "import", str(DIGITS))
    return Model("digits", _latest("digits"), Path())


def pictures(count: int, kind: str = "asked") -> list[Path]:
    """JPEG files of about 50 KB, 500 x 375: smooth noise, so that they decode like photographs, each in a tint of its own."""
    folder = WORK / "pictures" / kind
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.exists():
            chance = np.random.default_rng([index, *kind.encode()])
            pixels = 0.6 * chance.integers(0, 256, (48, 64, 3)) + 0.4 * chance.integers(0, 256, 3)
            picture = Image.fromarray(pixels.astype(np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=QUALITY)
            path.write_bytes(buffer.getvalue())
    return paths


def _built(name: str, source: str, weights: Path, *arguments: object) -> Model:
    made_by, maker = WORK / "made_by" / name, f"{digest_of(EXPORTER)} {source} {arguments}"
    known = made_by.exists() and made_by.read_text(encoding="utf-8") == maker
    if not known or not (HOME / "models" / name / "latest").exists():
        console.print(f"building {name} once")
        HOME.mkdir(parents=True, exist_ok=True)
        _run("build_model.py", source, "--name", name, *arguments)
        made_by.parent.mkdir(parents=True, exist_ok=True)
        made_by.write_text(maker, encoding="utf-8")
    return Model(name, _latest(name), weights)


def _latest(name: str) -> Path:
    folder = HOME / "models" / name
    return folder / (folder / "latest").read_text(encoding="utf-8").strip()


def _folder(paths: list[Path]) -> Path:
    return paths[0].parent


def _run(*command: object) -> None:
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=bentoml_environment(HOME), capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:4]))} ended with {result.returncode}:\n{result.stdout}{result.stderr}")
