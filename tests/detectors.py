"""Detectors that tests make for themselves: ONNX files with raw outputs of any layout, and random outputs like a model's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image, ImageEnhance

from ortserve.export.detection_form import Form
from ortserve.export.detection_graph import raw_names
from tests import reference
from tests.serving import ROOT

SIDE = 640
ASTRONAUT = ROOT / "examples" / "faces" / "astronaut.jpg"


def shapes(form: Form) -> list[tuple[int, int]]:
    """Of a row of each raw output, the scores first."""
    if form.layout == "scores-boxes":
        return [(form.boxes, form.columns), (form.boxes, 4)]
    return [{"yolov8": (4 + form.classes, form.boxes), "yolov5": (form.boxes, 5 + form.classes)}.get(form.layout, (form.boxes, 6))]


def random_raw(random: np.random.Generator, form: Form, rows: int) -> list[NDArray[np.float32]]:
    """Raw outputs in clusters, as a head gives them: many boxes on few objects, most of them with low scores."""
    objects = random.random((rows, 12, 4)) * (SIDE * 0.7, SIDE * 0.7, SIDE * 0.3, SIDE * 0.3) + (0, 0, 8, 8)
    which = random.integers(0, 12, (rows, form.boxes))
    corner_size = np.take_along_axis(objects, which[..., np.newaxis], axis=1) * random.uniform(0.85, 1.15, (rows, form.boxes, 4))
    low, size = corner_size[..., :2], corner_size[..., 2:]
    boxes = {"xyxy": (low, low + size), "xywh": (low, size), "cxcywh": (low + size / 2, size)}[form.box_format]
    coordinates = np.concatenate(boxes, axis=-1) / (SIDE if form.relative else 1)
    scores = random.random((rows, form.boxes, form.columns)) ** 4
    if form.score_activation != "none":
        scores = np.log(scores + 1e-3)
    if form.layout == "scores-boxes":
        parts: list[NDArray[Any]] = [scores, coordinates]
    elif form.layout == "yolov8":
        parts = [np.concatenate([coordinates, scores], axis=-1).transpose(0, 2, 1)]
    elif form.layout == "yolov5":
        parts = [np.concatenate([coordinates, random.random((rows, form.boxes, 1)), scores], axis=-1)]
    else:
        labels = random.integers(0, form.classes, (rows, form.boxes, 1))
        parts = [np.concatenate([coordinates, -np.sort(-scores[..., :1], axis=1), labels], axis=-1)]
    return [np.ascontiguousarray(part, np.float32) for part in parts]


def echo(form: Form, opset: int = 17) -> onnx.ModelProto:
    """A graph whose raw outputs are its inputs `given0`, `given1`: what is put behind it can be tried on any."""
    names = raw_names(form)
    kinds = [f"float[batch,{first},{second}]" for first, second in shapes(form)]
    inputs = ", ".join(f"{kind} given{index}" for index, kind in enumerate(kinds))
    outputs = ", ".join(f"{kind} {name}" for kind, name in zip(kinds, names, strict=True))
    nodes = "\n".join(f"{name} = Identity(given{index})" for index, name in enumerate(names))
    model: onnx.ModelProto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> echo ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    return model


def constant_detector(path: Path, raw: list[NDArray[np.float32]], size: tuple[int, int], *, batch: str = "free") -> Path:
    """An ONNX file that takes float[N,3,H,W] and answers `raw` (one row each) to every picture.

    `batch`: "free"; "fixed" at one by a Reshape that can be freed; "stubborn", at one by a Squeeze that cannot.
    """
    rows = "N" if batch == "free" else "1"
    inputs = f"float[{rows},3,{size[0]},{size[1]}] picture"
    outputs = ", ".join(f"float[{rows},{part.shape[1]},{part.shape[2]}] out{index}" for index, part in enumerate(raw))
    end = {
        "free": "out{0} = Identity(plain{0})",
        "fixed": "out{0} = Reshape(plain{0}, shape{0})",
        "stubborn": "flat{0} = Squeeze(plain{0}, first)\nout{0} = Unsqueeze(flat{0}, first)",
    }[batch]
    nodes = ["level = GlobalAveragePool(picture)", "column = Reshape(level, rows)", "nothing = Mul(column, zero)"]
    nodes += [
        f"level{index} = ReduceSum(nothing, last)\nplain{index} = Add(level{index}, raw{index})\n{end.format(index)}"
        for index in range(len(raw))
    ]
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> constant ({inputs}) => ({outputs}) <float zero = {{0}}> {{ {" ".join(nodes)} }}'
    )
    constants = {f"raw{index}": part for index, part in enumerate(raw)}
    constants |= {f"shape{index}": np.array(part.shape, np.int64) for index, part in enumerate(raw) if batch == "fixed"}
    constants |= {"rows": np.array([0, 1, 3]), "last": np.array([2])} | ({"first": np.array([0])} if batch == "stubborn" else {})
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.save(model, str(path))
    return path


def faces_onnx(path: Path) -> Path:
    """The real detector of examples/faces as an ONNX file."""
    environment = {**os.environ, "PYTHONPATH": str(reference.FOLDER)}
    subprocess.run([sys.executable, "examples/faces/make_onnx.py", str(path)], cwd=ROOT, env=environment, check=True, timeout=120)
    return path


def face_pictures(folder: Path, count: int) -> Path:
    """Faces of all sizes and brightnesses on two photographs."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    grounds = [Image.fromarray(picture) for picture in load_sample_images().images]
    face = Image.open(ASTRONAUT).crop((100, 20, 350, 270))
    folder.mkdir(parents=True)
    for index in range(count):
        picture = grounds[index % 2].copy()
        for _ in range(3):
            side = int(random.integers(120, 300))
            seen = ImageEnhance.Brightness(face.resize((side, side))).enhance(float(random.uniform(0.6, 1.4)))
            picture.paste(seen, (int(random.integers(0, 640 - side)), int(random.integers(0, 427 - side))))
        picture.save(folder / f"{index:03d}.jpg", quality=90)
    return folder
