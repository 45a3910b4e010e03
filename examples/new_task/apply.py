"""Adds the task of this folder to a copy of the project: python examples/new_task/apply.py FOLDER

FOLDER must not exist; it gets what git knows of the project, the two files of the task, and the five lines that name it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "image-feature-extraction"
# (file, what stands there, what is put before it)
LINES = (
    (
        "ortserve/tasks/__init__.py",
        "from ortserve.tasks.object_detection import",
        "from ortserve.tasks.image_feature_extraction import ImageFeatureExtraction\n",
    ),
    ("ortserve/tasks/__init__.py", '    "object-detection": ', f'    "{NAME}": ImageFeatureExtraction,\n'),
    ("ortserve/export/options.py", '"object-detection"', f'"{NAME}", '),
    (
        "ortserve/export/python_file.py",
        "from ortserve.export.torch_detector import",
        "from ortserve.export.tasks.image_feature_extraction import from_embedder\n",
    ),
    ("ortserve/export/python_file.py", '    "object-detection": ', f'    "{NAME}": from_embedder,\n'),
)


def main(target: Path) -> None:
    """Copy, add, insert."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    shutil.copytree(HERE / "ortserve", target / "ortserve", dirs_exist_ok=True)
    for name, anchor, line in LINES:
        text = (target / name).read_text(encoding="utf-8")
        if text.count(anchor) != 1:
            raise SystemExit(
                f"expected {anchor!r} once in {name}, found it {text.count(anchor)} times: mend LINES in {Path(__file__).name}"
            )
        (target / name).write_text(text.replace(anchor, line + anchor), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        raise SystemExit("expected the name of a folder that is not there yet: python examples/new_task/apply.py FOLDER")
    main(Path(sys.argv[1]))
