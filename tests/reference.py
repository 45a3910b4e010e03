"""What detectors are compared with: `.venv/reference` holds Ultralytics, OpenCV and a real detector's weights, each without dependencies.

`make reference` fills it. Ultralytics runs in a process of its own: it is AGPL-3.0, slow to import, and changes settings of torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv" / "reference"

_SUPPRESS = """
import sys
import numpy as np, torch, torchvision
from ultralytics.utils.nms import non_max_suppression
given = np.load(sys.argv[1])
answers = {}
for index in range(int(given["cases"])):
    conf, iou, most, classes = given[f"parameters{index}"]
    found = non_max_suppression(
        torch.from_numpy(given[f"raw{index}"]).double(), float(conf), float(iou), max_det=int(most), max_time_img=10.0, nc=int(classes),
        **({"max_nms": 30000}),
    )
    for row, boxes in enumerate(found):
        answers[f"{index}.{row}"] = boxes.numpy()
np.savez(sys.argv[2], **answers)
"""
_LETTERBOX = """
import sys
import numpy as np
from ultralytics.data.augment import LetterBox
given = np.load(sys.argv[1])
sides = tuple(int(side) for side in given["size"])
np.savez(sys.argv[2], **{name: LetterBox(sides)(image=given[name]) for name in given.files if name != "size"})
"""


def environment(folder: Path) -> dict[str, str]:
    """For a process that imports from the reference folder, its settings kept in `folder`, asking nobody."""
    return {
        **os.environ,
        "PYTHONPATH": str(FOLDER),
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
    }


def ultralytics_suppression(raw: Sequence[NDArray[Any]], parameters: Sequence[Sequence[float]], folder: Path) -> list[list[NDArray[Any]]]:
    """Ultralytics' `non_max_suppression` of raw outputs [N,4+C,A], each with (score, IoU, most, classes): for each row boxes [n,6].

    In double, so that its trick of moving each class apart by 7680 pixels costs no digit of the overlap.
    """
    given: dict[str, Any] = {"cases": np.array(len(raw))}
    for index, (tensor, values) in enumerate(zip(raw, parameters, strict=True)):
        given |= {f"raw{index}": tensor, f"parameters{index}": np.array(values, np.float64)}
    answers = _run(_SUPPRESS, given, folder)
    return [[answers[f"{index}.{row}"] for row in range(len(tensor))] for index, tensor in enumerate(raw)]


def ultralytics_letterbox(pictures: Mapping[str, NDArray[np.uint8]], size: tuple[int, int], folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Each picture in Ultralytics' `LetterBox` of that height and width."""
    return _run(_LETTERBOX, {**pictures, "size": np.array(size)}, folder)


def _run(code: str, given: Mapping[str, Any], folder: Path) -> dict[str, NDArray[Any]]:
    asked, answered = folder / "asked.npz", folder / "answered.npz"
    np.savez(asked, **given)
    done = subprocess.run(
        [sys.executable, "-c", code, str(asked), str(answered)], env=environment(folder), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"is .venv/reference there? make reference fills it\n{done.stdout}{done.stderr}"
    with np.load(answered) as archive:
        return {name: archive[name] for name in archive.files}
