"""The model store is never seen half written: killed at any step, raced by another build, carried to another machine."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]

# Publishes a small package; counts every call that changes the disk and kills itself, as the kernel would, before number KILL_AT.
DRIVER = """
import json, os, shutil, signal, sys
from pathlib import Path
from ortserve.export import store
from ortserve.manifest import Manifest

kill_at, name, version = int(sys.argv[1]), sys.argv[2], sys.argv[3]
calls = 0
def counted(function):
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
# pathlib and tempfile end in these; every step of a publication goes through one of them
for step in ("rename", "replace", "mkdir", "fsync"):
    setattr(os, step, counted(getattr(os, step)))
Path.write_text, Path.write_bytes = counted(Path.write_text), counted(Path.write_bytes)

manifest = Manifest.model_validate({
    "name": name, "task": "image-classification", "inputs": [], "outputs": [], "labels": ["a", "b"], "max_batch": 1, "variants": {},
    "preprocessing": {"mode": "stretch", "height": 8, "width": 8, "mean": [0, 0, 0], "std": [1, 1, 1]},
    "source": {"kind": "onnx", "reference": "m.onnx", "weights": "its own"}, "versions": {}, "created_at": "2026-01-01T00:00:00+00:00",
})
with store.staging(name, version) as staged:
    (staged.folder / "fp32.onnx").write_bytes(bytes(range(256)) * 64)
    print("staged", flush=True)
    if kill_at < 0:
        sys.stdin.read()
    store.publish(staged, manifest)
print("calls", calls)
"""


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": str(ROOT)}


def publish(home: Path, name: str, version: str, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DRIVER, str(kill_at), name, version]
    return subprocess.run(command, env=environment(home), capture_output=True, text=True, timeout=60)


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def bentoml(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "bentoml", *arguments], env=environment(home), capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds net:1."""
    home = tmp_path_factory.mktemp("home")
    done = publish(home, "net", "1")
    assert done.returncode == 0, done.stderr
    return home


def last_call(done: subprocess.CompletedProcess[str]) -> int:
    return int(done.stdout.rsplit("calls ", 1)[1])


@pytest.mark.parametrize("name", ["net", "other"])
def test_killed_at_any_step_leaves_the_store_as_it_was_or_whole(store: Path, name: str, tmp_path: Path) -> None:
    """A second version of a known name, and a name the store has not seen: before the rename nothing shows, after it everything."""
    publish(tmp_path, "net", "1")
    total = last_call(publish(tmp_path, name, "2"))
    models = store / "models"
    before = tree(models)
    whole = 0
    for kill_at in range(1, total + 1):
        done = publish(store, name, "2", kill_at)
        assert done.returncode == -signal.SIGKILL, (kill_at, done.stderr)
        after = tree(models)
        if (models / name / "2").exists():  # the rename was done: the new version is whole, every older file as it was
            whole += 1
            assert {path: digest for path, digest in after.items() if not path.startswith(f"{name}/")} == {
                path: digest for path, digest in before.items() if not path.startswith(f"{name}/")
            }
            assert {path for path in after if path.startswith(f"{name}/2/")} == {
                f"{name}/2/{file}" for file in ("fp32.onnx", "manifest.json", "model.yaml")
            }
            assert f"{name}:2" in bentoml(store, "models", "list")
            bentoml(store, "models", "delete", f"{name}:2", "-y")
        assert tree(models) == before, kill_at
    assert whole < total / 2
    assert publish(store, name, "2").returncode == 0
    assert (models / name / "latest").read_text() == "2"
    bentoml(store, "models", "delete", f"{name}:2", "-y")


def test_staging_of_a_dead_build_is_swept_and_of_a_living_one_is_not(store: Path) -> None:
    staging = store / "ortserve-staging"
    command = [sys.executable, "-c", DRIVER, "-1", "living", "1"]
    with subprocess.Popen(command, env=environment(store), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == "staged\n"
        [held] = list(staging.iterdir())
        dead = staging / "dead"
        (dead / "net" / "9").mkdir(parents=True)
        (dead / "alive").touch()
        assert publish(store, "net", "3").returncode == 0
        assert list(staging.iterdir()) == [held]
        living.communicate("", timeout=60)
    assert (store / "models" / "living" / "1" / "fp32.onnx").exists()
    assert list(staging.iterdir()) == []
    assert "ortserve-staging" not in bentoml(store, "models", "list")


def test_two_builds_of_one_name_at_once_both_arrive(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", DRIVER, "-1", "both", version] for version in ("1", "2", "3")]
    running = [
        subprocess.Popen(command, env=environment(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
    for process in running:  # all are staged: now let them publish together
        assert process.stdin is not None
        process.stdin.close()
    for process in running:
        assert process.wait(timeout=60) == 0
        assert process.stdout is not None
        process.stdout.close()
    models = tmp_path / "models" / "both"
    assert sorted(path.name for path in models.iterdir()) == ["1", "2", "3", "latest"]
    assert (models / "latest").read_text() in {"1", "2", "3"}


def test_existing_version_and_bad_names_are_refused_before_any_work(store: Path) -> None:
    before = tree(store / "models")
    for name, version, words in (("net", "1", "in the store already"), ("Net!", "1", "choose another"), ("net", "latest", "latest")):
        done = publish(store, name, version)
        assert done.returncode == 1
        assert "staged" not in done.stdout
        assert words in done.stderr
    assert tree(store / "models") == before


def test_export_and_import_carry_every_byte(store: Path, tmp_path: Path) -> None:
    archive, elsewhere = tmp_path / "net.bentomodel", tmp_path / "elsewhere"
    bentoml(store, "models", "export", "net:1", str(archive))
    bentoml(elsewhere, "models", "import", str(archive))
    assert tree(elsewhere / "models" / "net" / "1") == tree(store / "models" / "net" / "1")
