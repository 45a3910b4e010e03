"""Builds what lies here for `digits`: the package that is served by default, `seven.png`, and the pictures under `digits/`.

    python examples/make_digits.py [FOLDER]        FOLDER: where to write, this one unless told otherwise

The store it builds in is a temporary one. Committed results may differ from a new run in bytes (other CPUs round otherwise, the
package carries its time), never in what they answer: a test rebuilds and compares.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# A stable version: whoever takes the package into a store knows its tag beforehand.
TAG = "digits:1"
COMMAND = ["build_model.py", "digits", "--version", "1", "--precision", "fp32,fp16,int8"]
# Pictures of each digit for the load test.
PER_DIGIT = 3


def main(folder: Path) -> None:
    """Write package and pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"}
        subprocess.run([sys.executable, *COMMAND], cwd=ROOT, env=environment, check=True)
        target = folder / "digits.bentomodel"
        target.unlink(missing_ok=True)
        # Absolute: BentoML reads a relative target as one at the root of the file system.
        subprocess.run([sys.executable, "-m", "bentoml", "models", "export", TAG, str(target.resolve())], env=environment, check=True)
    pictures(folder)


def pictures(folder: Path) -> None:
    """Write held-back digits as PNG: `seven.png`, large enough to look at, and `digits/LABEL_NUMBER.png`."""
    sys.path.insert(0, str(ROOT))
    from ortserve.export.digits import held_back, held_back_images, png

    (folder / "digits").mkdir(exist_ok=True)
    seven = next(image for image, label in held_back_images() if label == 7)
    (folder / "seven.png").write_bytes(png(seven, side=256))
    count = dict.fromkeys(range(10), 0)
    for data, label in held_back():
        if count[label] < PER_DIGIT:
            (folder / "digits" / f"{label}_{count[label]}.png").write_bytes(data)
            count[label] += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
