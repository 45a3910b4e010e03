"""What `bentoml build` really packs: the serving code, our lock with its hashes, the pinned model, and nothing of the builder's machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from ortserve.compiled import FOLDER
from tests.serving import ROOT, bentoml

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def bento(digits_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bento built in a store of its own."""
    home = tmp_path_factory.mktemp("bento_home")
    shutil.copytree(digits_home / "models", home / "models", symlinks=True)
    bentoml(home, "build", "--version", "test")
    return home / "bentos" / "model_service" / "test"


def test_the_source_is_the_serving_code_and_the_profiles(bento: Path) -> None:
    source = bento / "src"
    assert {path.name for path in source.iterdir()} == {"bentofile.yaml", "service.py", "ortserve", "profiles"}
    tools = {"export", "tune"}
    assert not tools & {path.name for path in (source / "ortserve").iterdir()}
    held = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    here = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("ortserve/**/*.py") if not tools & {*path.parts}} | {"service.py"}
    assert held == here


def test_the_c_for_pixels_is_that_of_the_checkout(bento: Path) -> None:
    folder = bento / "src" / "ortserve" / "native"
    held, here = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (folder, FOLDER))
    assert held == here
    assert Path("libjpeg/README.ijg") in held  # the licence of the headers beside it


def test_the_model_is_pinned(bento: Path, digits_home: Path) -> None:
    version = (digits_home / "models" / "digits" / "latest").read_text(encoding="utf-8").strip()
    facts = yaml.safe_load((bento / "bento.yaml").read_text(encoding="utf-8"))
    pinned = {service["name"]: [model["tag"] for model in service["models"]] for service in facts["services"]}
    assert pinned == {"model_service": [f"digits:{version}"], "model_runner": [f"digits:{version}"]}


def test_the_requirements_are_our_lock_and_name_no_index(bento: Path) -> None:
    text = (bento / "env" / "python" / "requirements.txt").read_text(encoding="utf-8")
    lock = (ROOT / "requirements" / "cuda.txt").read_text(encoding="utf-8")
    assert text.count("--hash=sha256:") == lock.count("--hash=sha256:")
    assert "://" not in text
    assert "index-url" not in text
    assert "torch" not in text


def test_the_image_is_a_slim_python_whatever_python_built_it(bento: Path) -> None:
    assert "FROM python:3.11-slim" in (bento / "env" / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_nothing_tells_of_the_builders_machine(bento: Path) -> None:
    for path in bento.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for trace in (str(ROOT), str(Path.home())):
                assert f"{trace}/".encode() not in content, f"{path.relative_to(bento)} names {trace}"
