"""The committed digits package: rebuilt, it states the same facts and gives the same answers; a killed build leaves nothing.

Bytes are not compared: another CPU rounds the training otherwise, and a package carries the time it was made.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortserve.execution import Execution
from ortserve.export.digits import PREPROCESSING, held_back, held_back_images, png
from ortserve.export.pictures import to_pixels
from ortserve.manifest import Manifest, Precision, sha256_of
from ortserve.session import Session

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the committed package, imported into a store of its own."""
    home = tmp_path_factory.mktemp("committed")
    archive = str(EXAMPLES / "digits.bentomodel")
    subprocess.run([sys.executable, "-m", "bentoml", "models", "import", archive], env=environment(home), check=True, capture_output=True)
    return home / "models" / "digits" / "1"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which `build_model.py digits` was run as examples/make_digits.py runs it."""
    home = tmp_path_factory.mktemp("rebuilt")
    command = [sys.executable, "build_model.py", "digits", "--version", "1", "--precision", ",".join(PRECISIONS)]
    done = subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (home / "output.txt").write_text(done.stdout, encoding="utf-8")
    return home


def answers(package: Path, precision: Precision, pixels: np.ndarray) -> np.ndarray:
    path = Manifest.read(package).verified_path(package, precision)
    session = Session.open(path, Execution(provider="CPUExecutionProvider"), outputs=["probabilities"])
    return session.run({"pixels": pixels})["probabilities"]


def facts(manifest: Manifest) -> dict[str, Any]:
    """What must not depend on the machine that built."""
    data = manifest.model_dump(exclude={"created_at", "versions", "variants"})
    data["variants"] = {name: (item.file, item.opset, item.nodes, item.parity.reference) for name, item in manifest.variants.items()}
    return data


def test_rebuilt_package_states_the_same_facts(committed: Path, rebuilt: Path) -> None:
    old, new = Manifest.read(committed), Manifest.read(rebuilt / "models" / "digits" / "1")
    assert facts(new) == facts(old)
    assert set(new.versions) == set(old.versions)
    for variant in new.variants.values():
        assert variant.parity.passed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_over_97_percent_of_held_back_digits_are_right_in_both(committed: Path, rebuilt: Path, precision: Precision) -> None:
    pictures = held_back()
    assert len(pictures) == 450
    labels = np.array([label for _, label in pictures])
    light = np.stack([to_pixels(data, PREPROCESSING) for data, _ in pictures])
    dark = np.stack([to_pixels(png(image, dark_on_light=True), PREPROCESSING) for image, _ in held_back_images()])
    for package in (committed, rebuilt / "models" / "digits" / "1"):
        for pixels in (light, dark):
            assert (answers(package, precision, pixels).argmax(axis=1) == labels).mean() > 0.97


def test_committed_package_is_small_and_whole_and_names_no_path_of_its_builder(committed: Path) -> None:
    assert (EXAMPLES / "digits.bentomodel").stat().st_size < 400_000
    manifest = Manifest.read(committed)
    for precision, variant in manifest.variants.items():
        assert sha256_of(manifest.verified_path(committed, precision)) == variant.sha256
    content = b"".join(path.read_bytes() for path in committed.iterdir())
    assert not re.search(rb"(/home/|/root|/tmp/|/work|/Users/|site-packages|\.py\")", content)


def test_committed_pictures_are_held_back_ones(committed: Path) -> None:
    pictures = {data for data, _ in held_back()}
    files = sorted((EXAMPLES / "digits").glob("*.png"))
    assert len(files) == 30
    assert sum(path.read_bytes() in pictures for path in files) in (0, 30)  # another zlib packs other bytes, then all differ
    pixels = np.stack([to_pixels(path.read_bytes(), PREPROCESSING) for path in [*files, EXAMPLES / "seven.png"]])
    labels = [int(path.name[0]) for path in files] + [7]
    assert answers(committed, "fp32", pixels).argmax(axis=1).tolist() == labels


def test_every_stage_shows_its_time_and_sizes(rebuilt: Path) -> None:
    output = (rebuilt / "output.txt").read_text(encoding="utf-8")
    for stage in ("load", "reference", "export", "simplify", "convert int8", "verify fp16", "save"):
        assert re.search(rf"^  {stage} +\d+\.\d s   \S", output, re.MULTILINE), stage
    assert re.search(r"simplify .* \d+ nodes \d+ KB -> \d+ nodes \d+ KB", output)
    assert re.search(r"int8 +│.*passed │", output)


# The stages named below come before an export of seconds, so that the signal always lands before the save; the steps of the save itself
# are killed one by one in test_build_store.py.
NET = ("examples/research/net.py:build", "--weights", "random", "--input-size", "32")


@pytest.mark.parametrize(
    ("stop", "stage", "source"),
    [(signal.SIGKILL, "reference", NET), (signal.SIGKILL, "export", NET), (signal.SIGINT, "load", ("digits",))],
)
def test_a_stopped_build_leaves_the_store_as_it_was(tmp_path: Path, stop: signal.Signals, stage: str, source: tuple[str, ...]) -> None:
    command = [sys.executable, "-u", "build_model.py", *source, "--version", "1"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as build:
        assert build.stdout is not None
        assert build.stderr is not None
        for line in build.stdout:
            if line.strip().startswith(stage):
                build.send_signal(stop)
                break
        errors = build.communicate(timeout=120)[1]
    models = tmp_path / "models"
    assert not models.exists() or list(models.iterdir()) == []
    if stop == signal.SIGINT:
        assert build.returncode == 130
        assert errors == "interrupted: nothing was saved\n"
        assert not (tmp_path / "ortserve-staging").exists() or list((tmp_path / "ortserve-staging").iterdir()) == []
    else:
        assert build.returncode == -signal.SIGKILL
