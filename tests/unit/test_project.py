"""Drift: what imports what, and what the bento holds, stay as they are said to be; what is locked is in test_locks.py."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from bentoml._internal.bento.build_config import BentoBuildConfig, BentoPathSpec
from packaging.utils import canonicalize_name

import ortserve
from ortserve.compiled import compiled_file
from tests.serving import ROOT
from tests.unit.test_locks import direct, pins

TORCH_SIDE = {"onnx", "onnxscript", "onnxsim", "safetensors", "sklearn", "timm", "torch", "torchvision", "ultralytics"}
BENTOML = {"bentoml", "_bentoml_impl", "_bentoml_sdk"}
HTTP = {"starlette", "uvicorn", "python_multipart"} | BENTOML

# The ground floor: imported by everything, imports nothing above it.
FOUNDATION = {
    "errors",
    "manifest",
    "execution",
    "profile",
    "profile_file",
    "cpus",
    "compile",
    "compiled",
    "images",
    "image_headers",
    "jpeg",
    "nms",
    "placement",
    "resample",
    "gpu",
}
# Runs models and knows no HTTP.
ENGINE = {
    *("session", "heap", "shared_pool", "bound", "cudart", "providers", "tensorrt", "batching", "batch", "fair_queue", "slots", "refusals"),
    *("engine", "local_engine", "remote_engine", "runner_link", "runner_stream", "frames", "joined_place"),
}
# What belongs to HTTP and BentoML: nothing of the foundation, the engine or the build may import it.
EDGE = {
    *("accepting", "app", "bento", "body", "connection", "door", "drain", "edge", "http1", "listening", "metrics_port"),
    *("model_store", "one_write", "openapi", "pacing", "page", "paths", "replies", "requests", "routes", "schemas", "services"),
    *("streams", "v2"),
}
# Where BentoML may be imported: its service, its edge, its store.
KNOWS_BENTOML = {
    "service",
    "ortserve.app",
    "ortserve.bento",
    "ortserve.model_store",
    "ortserve.openapi",
    "ortserve.page",
    "ortserve.services",
    "ortserve.export.store",
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    files = [*ROOT.glob("ortserve/**/*.py"), ROOT / "service.py", ROOT / "build_model.py"]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that `module` names in an import statement, at its top or inside a function; for typing alone included."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: name the module in full"
            base = str(node.module)
            inner = {f"{base}.{alias.name}" for alias in node.names} & modules().keys()
            found |= inner or {base}
    return frozenset(found)


@cache
def distributions() -> Mapping[str, list[str]]:
    """Import name to the names of the distributions that hold it."""
    return packages_distributions()


def own(module: str) -> set[str]:
    """The project's modules that `module` imports."""
    return {name for name in imports(module) if name in modules()}


def foreign(module: str) -> set[str]:
    """The third-party packages that `module` imports, by their import name."""
    tops = {name.partition(".")[0] for name in imports(module)}
    return tops - sys.stdlib_module_names - {"ortserve", "loadtest", "service", "build_model"}


def builds(module: str) -> bool:
    """Whether the module belongs to the torch side."""
    return module == "build_model" or module.startswith("ortserve.export")


def tunes(module: str) -> bool:
    """Whether the module belongs to the tuning tool."""
    return module.startswith("ortserve.tune")


def serves(module: str) -> bool:
    """Whether the module is part of what serves, and so of the bento."""
    return not builds(module) and not tunes(module)


def noun(module: str) -> str:
    """The module's name inside the package: "session" of "ortserve.session", "tasks" of "ortserve.tasks.endpoint"."""
    return module.split(".")[1] if module.startswith("ortserve.") else module


# --- imports ----------------------------------------------------------------------------------------------------------


def test_errors_imports_nothing() -> None:
    assert own("ortserve.errors") | foreign("ortserve.errors") == set()


def test_imports_form_no_circle() -> None:
    # Raises CycleError, which names the circle.
    list(TopologicalSorter({module: own(module) - {module} for module in modules()}).static_order())


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_one_way(module: str) -> None:
    layer, imported = noun(module), {noun(name) for name in own(module) if name.startswith("ortserve.")}
    if layer in FOUNDATION:
        assert imported <= FOUNDATION
    if layer in ENGINE:
        assert imported <= FOUNDATION | ENGINE
    if builds(module):
        assert imported <= FOUNDATION | {"session", "export"}
    else:
        assert "export" not in imported
    if tunes(module):
        assert imported <= FOUNDATION | {"startup", "tune"}
    else:
        assert "tune" not in imported
    if layer not in EDGE and module != "service":
        assert not imported & EDGE
        assert "service" not in imports(module)


@pytest.mark.parametrize("module", sorted(modules()))
def test_heavy_packages_stay_where_they_belong(module: str) -> None:
    if not builds(module):
        assert not foreign(module) & TORCH_SIDE
    if module not in KNOWS_BENTOML:
        assert not foreign(module) & BENTOML
    if noun(module) in FOUNDATION | ENGINE or (not serves(module) and module not in KNOWS_BENTOML):
        assert not foreign(module) & HTTP


@pytest.mark.parametrize("module", sorted(modules()))
def test_what_is_imported_is_asked_for_by_name(module: str) -> None:
    asked = direct("serving") | (set() if serves(module) else direct("build"))
    for package in foreign(module):
        providers = {canonicalize_name(name) for name in distributions().get(package, [package])}
        assert providers & asked, f"{module} imports {package}: add {' or '.join(sorted(providers))} to requirements/*.in and run make lock"


def test_every_serving_module_imports_with_the_torch_side_blocked() -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in sorted(TORCH_SIDE))
    serving = [module for module in modules() if module.startswith("ortserve") and serves(module)]
    code = f"import sys, importlib\n{blocked}for name in {serving!r}: importlib.import_module(name)\n"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


# --- the bento --------------------------------------------------------------------------------------------------------


def build_config() -> BentoBuildConfig:
    return BentoBuildConfig.from_file(str(ROOT / "bentofile.yaml"))


def test_the_bento_holds_every_serving_module_every_profile_and_nothing_else() -> None:
    config = build_config()
    spec = BentoPathSpec(config.include, config.exclude, str(ROOT))
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    held = {path for path in listed.stdout.splitlines() if spec.includes(f"./{path}" if "/" not in path else path)}
    serving = {file.relative_to(ROOT).as_posix() for module, file in modules().items() if serves(module)}
    profiles = {file.relative_to(ROOT).as_posix() for file in ROOT.glob("profiles/*.yaml")}
    assert held == serving | profiles | {path for path in listed.stdout.splitlines() if path.startswith("ortserve/native/")}


def test_the_bento_takes_what_was_compiled_along_where_there_is_one() -> None:
    config = build_config()
    spec = BentoPathSpec(config.include, config.exclude, str(ROOT))
    compiled = compiled_file().relative_to(ROOT).as_posix()
    assert spec.includes(compiled)
    assert subprocess.run(["git", "check-ignore", "--quiet", compiled], cwd=ROOT, check=False).returncode == 0


def test_the_bento_installs_a_lock_of_ours_with_its_hashes() -> None:
    python = build_config().python
    assert python.requirements_txt == "requirements/cuda.txt"
    assert python.lock_packages is False  # BentoML's own lock drops hashes and writes the builder's index address
    assert set(pins("serving")) <= set(pins("cuda"))


# --- the commands -----------------------------------------------------------------------------------------------------


def test_make_help_lists_every_target_a_person_calls() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE))
    described = set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE))
    assert phony == described
    assert {"help", "serve", "setup", "check", "fix", "test", "lock"} <= phony


def test_the_version_is_said_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == ortserve.__version__


def test_the_supported_pythons_are_said_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info < (3, 14)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--python-version 3.11" in (ROOT / "requirements/lock").read_text(encoding="utf-8")
    assert project["tool"]["ruff"]["target-version"] == "py311"
    assert project["tool"]["mypy"]["python_version"] == "3.11"
