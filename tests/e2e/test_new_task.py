"""A task that is not there yet, added to a copy of the project as examples/new_task says, built, served and compared with PyTorch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from tests.serving import ROOT, Server, bentoml_environment

pytestmark = pytest.mark.e2e

EXAMPLE = ROOT / "examples" / "new_task"
TOUCHED = {"ortserve/tasks/__init__.py": 2, "ortserve/export/options.py": 1, "ortserve/export/python_file.py": 2}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the example's task in it."""
    folder = tmp_path_factory.mktemp("new_task") / "copy"
    subprocess.run([sys.executable, str(EXAMPLE / "apply.py"), str(folder)], check=True, timeout=60)
    return folder


def test_it_costs_two_files_and_the_lines_that_its_readme_says(copy: Path) -> None:
    changed = {}
    for path in copy.rglob("*.py"):
        name = path.relative_to(copy).as_posix()
        new = path.read_text(encoding="utf-8").splitlines()
        old = (ROOT / name).read_text(encoding="utf-8").splitlines() if (ROOT / name).exists() else []
        if new != old:
            changed[name] = len(set(new) - set(old))
    added = {path.relative_to(EXAMPLE).as_posix() for path in (EXAMPLE / "ortserve").rglob("*.py")}
    assert len(added) == 2
    assert {name: lines for name, lines in changed.items() if name not in added} == TOUCHED
    rows = re.findall(r"`(ortserve/[^`]+)`: .*\| (\d) \|", (EXAMPLE / "README.md").read_text(encoding="utf-8"))
    assert {name: int(lines) for name, lines in rows} == TOUCHED


def test_its_model_is_built_served_and_answers_as_pytorch_does(copy: Path, tmp_path: Path) -> None:
    command = ["examples/new_task/net.py:build", "--task", "image-feature-extraction", "--input-size", "32", "--resize-mode", "stretch"]
    environment = bentoml_environment(tmp_path)
    built = subprocess.run(
        [sys.executable, "build_model.py", *command, "--mean", "0", "0", "0", "--std", "1", "1", "1"],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "nearest-picture" in built.stdout
    pictures = sorted((ROOT / "examples" / "digits").glob("*.png"))[:6]
    with Server(tmp_path, cwd=copy, env={"ORTSERVE_MODEL": "net"}) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        served = [
            client.post("/embed_image", files={"image": path.read_bytes()}).raise_for_status().json()["embedding"] for path in pictures
        ]
        together = client.post(
            "/embed_image_batch", files=[("images", path.read_bytes()) for path in (*pictures, copy / "Makefile")]
        ).json()
        refused = client.post("/embed_image", files={"image": b"no picture"})
        elsewhere = client.post("/classify", files={"image": pictures[0].read_bytes()})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_image")
    assert elsewhere.status_code == 404
    np.testing.assert_allclose([result["embedding"] for result in together["results"][:-1]], served, atol=1e-6)
    assert together["results"][-1]["error"]["code"] == "invalid_image"
    np.testing.assert_allclose(served, _expected(tmp_path, pictures), atol=1e-4)


def _expected(home: Path, pictures: list[Path]) -> np.ndarray:
    """PyTorch's own, of the module with the seed the build gives it."""
    from ortserve.export.pictures import to_pixels
    from ortserve.manifest import Manifest

    folder = home / "models" / "net"
    how = Manifest.read(folder / (folder / "latest").read_text().strip()).preprocessing
    assert how is not None
    pixels = np.stack([to_pixels(path.read_bytes(), how) for path in pictures])
    namespace: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        exec((EXAMPLE / "net.py").read_text(encoding="utf-8"), namespace)
        model = namespace["build"]().eval()  # type: ignore[operator]
        answer = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
        expected: np.ndarray = torch.nn.functional.normalize(answer).numpy()
    return expected
