"""What the three images are made of: one template, one list of files, requirements of their own, and nothing of the builder's machine."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from deploy import results
from deploy.image import BENTOFILES
from deploy.sbom import bill_of_materials, packages
from tests.serving import ROOT, bentoml

pytestmark = pytest.mark.integration

# An address with a name or a password in it, and what names an index.
CREDENTIALS = re.compile(r"://[^/\s@]+@")
INDEX = re.compile(r"--(extra-)?index-url|--find-links|--trusted-host|PIP_INDEX_URL|UV_DEFAULT_INDEX|file://")


@pytest.fixture(scope="module", params=BENTOFILES)
def bento(request: pytest.FixtureRequest, digits_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bento of that variant, in a store of its own, built where an index with a password is set up."""
    home = tmp_path_factory.mktemp(request.param)
    shutil.copytree(digits_home / "models", home / "models", symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_INDEX_URL", "https://builder:hunter2@index.invalid/simple")
        bentoml(home, "build", "-f", str(BENTOFILES[request.param].relative_to(ROOT)), "--version", "test")
    return home / "bentos" / "model_service" / "test"


def bentofile(variant: str) -> dict[str, Any]:
    """What that bentofile says, without what may differ."""
    facts: dict[str, Any] = yaml.safe_load(BENTOFILES[variant].read_text(encoding="utf-8"))
    assert facts.pop("labels") == {"variant": variant}
    assert facts["python"].pop("requirements_txt") == f"requirements/{variant}.txt"
    return facts


@pytest.mark.parametrize("variant", sorted(BENTOFILES.keys() - {"cuda"}))
def test_the_variants_differ_in_requirements_and_labels_alone(variant: str) -> None:
    assert bentofile(variant) == bentofile("cuda")


def test_requirements_and_dockerfile_name_no_index_no_password_no_path(bento: Path) -> None:
    for name in ("env/python/requirements.txt", "env/docker/Dockerfile", "env/docker/Dockerfile.template", "env/python/install.sh"):
        text = (bento / name).read_text(encoding="utf-8")
        if name != "env/python/install.sh":  # BentoML's own, which knows such options and is not run
            assert not INDEX.search(text), name
        assert not CREDENTIALS.search(text), name
        for trace in ("hunter2", "index.invalid", str(ROOT), str(Path.home()) + "/", str(bento.parents[2])):
            assert trace not in text, f"{name} holds {trace}"
    for line in (bento / "env/python/requirements.txt").read_text(encoding="utf-8").splitlines():
        assert re.match(r"[A-Za-z0-9_.-]+(\[[a-z,]+\])?==| *(--hash=sha256:|# )|$", line), line


def test_the_dockerfile_makes_what_the_documents_say(bento: Path) -> None:
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    final = dockerfile.rpartition("\nFROM python:3.11-slim\n")[2]
    assert re.findall(r"^FROM (\S+)", dockerfile, re.M) == ["python:3.11-slim"] * 2
    assert "--require-hashes" in dockerfile
    for word in ("apt-get", "build-essential", "git", "gnupg", "chown"):
        assert word not in dockerfile
    assert re.search(r"^USER (\d+):\d+$", final, re.M)[1] != "0"  # type: ignore[index]
    for line in (
        "HEALTHCHECK ",
        "LABEL org.opencontainers.image.title=",
        "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ):
        assert f"\n{line}" in f"\n{final}"
    assert "BENTOML_HOME=/tmp/" in final
    assert "BENTOML_CONTAINERIZED=" in final  # BentoML's own mark of a container: /livez stands for its missing respawn


def test_the_bill_of_materials_holds_every_package_and_model(bento: Path) -> None:
    lock = (bento / "env" / "python" / "requirements.txt").read_text(encoding="utf-8")
    store = bento.parents[2] / "models"
    document = json.loads(bill_of_materials(bento, lambda tag: store / tag.replace(":", "/")))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    stated = {item["name"]: item["version"] for item in document["components"] if item["type"] == "library"}
    assert stated == packages(lock)
    runtimes = [name for name in stated if name.startswith("onnxruntime")]
    assert len(runtimes) == 1
    assert all(item["purl"] == f"pkg:pypi/{item['name']}@{item['version']}" for item in document["components"] if "purl" in item)
    assert set(stated) <= {canonicalize_name(name) for name in re.findall(r"^([A-Za-z0-9_.-]+)", lock, re.M)}
    [model] = [item for item in document["components"] if item["type"] == "machine-learning-model"]
    assert (model["name"], model["version"]) == ("digits", "1")
    assert all(re.fullmatch(r"[0-9a-f]{64}", file["hashes"][0]["content"]) for file in model["components"])
    assert len({item["bom-ref"] for item in document["components"]}) == len(document["components"])


def test_the_table_holds_the_committed_figures() -> None:
    assert (results.FOLDER / "prove.md").read_text(encoding="utf-8") == results.table(results.FOLDER)
