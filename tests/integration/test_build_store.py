"""The model store is never seen half written: killed at any step, raced by another build, carried to another machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]

# Publishes small packages; counts every call that changes the disk and kills itself, as the kernel would, before number KILL_AT.
DRIVER = """
import os, signal, sys
from pathlib import Path
import bentoml
from ortserve.export import store
from ortserve.manifest import Manifest

calls, kill_at = 0, 0
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

def publish(name, version, wait):
    manifest = Manifest.model_validate({
        "name": name, "task": "image-classification", "inputs": [], "outputs": [], "labels": ["a", "b"], "max_batch": 1, "variants": {},
        "preprocessing": {"mode": "stretch", "height": 8, "width": 8, "mean": [0, 0, 0], "std": [1, 1, 1]},
        "source": {"kind": "onnx", "reference": "m.onnx", "weights": "its own"}, "versions": {},
        "created_at": "2026-01-01T00:00:00+00:00",
    })
    with store.staging(name, version) as staged:
        (staged.folder / "fp32.onnx").write_bytes(bytes(range(256)) * 64)
        print("staged", flush=True)
        if wait:
            sys.stdin.read()
        store.publish(staged, manifest)
    print("calls", calls, flush=True)

if sys.argv[1:]:
    publish(sys.argv[1], sys.argv[2], wait=True)
for line in sys.stdin:  # "KILL_AT NAME VERSION": in a child, so that the imports are paid once
    wanted, name, version = line.split()
    if child := os.fork():
        print("status", os.waitpid(child, 0)[1], flush=True)
        continue
    kill_at = int(wanted)
    try:
        publish(name, version, wait=False)
    except Exception as error:
        print(error, flush=True)
        os._exit(1)
    os._exit(0)
"""


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": str(ROOT)}


class Publisher:
    """Publications in one store, one after the other, each in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.models = home / "models"
        command = [sys.executable, "-c", DRIVER]
        self.process = subprocess.Popen(command, env=environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate("", timeout=60)

    def publish(self, name: str, version: str, kill_at: int = 0) -> tuple[int, list[str]]:
        """How the child ended (its exit status, or minus the signal), and what it printed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{kill_at} {name} {version}\n")
        self.process.stdin.flush()
        printed = []
        for line in self.process.stdout:
            if line.startswith("status "):
                return os.waitstatus_to_exitcode(int(line.split()[1])), printed
            printed.append(line.rstrip())
        raise AssertionError(f"the driver ended: {printed}")

    def calls(self, name: str, version: str) -> int:
        """How many steps a publication takes."""
        status, printed = self.publish(name, version)
        assert status == 0, printed
        return int(printed[-1].split()[1])


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
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME whose store holds net:1."""
    home = tmp_path_factory.mktemp("home")
    with Publisher(home) as publisher:
        assert publisher.publish("net", "1")[0] == 0
    return home


@pytest.mark.parametrize("name", ["net", "other"])
def test_killed_at_any_step_leaves_the_store_as_it_was_or_whole(name: str, tmp_path: Path) -> None:
    """A second version of a known name, and a name the store has not seen: before the rename nothing shows, after it everything."""
    with Publisher(tmp_path / "count") as counter:
        counter.calls("net", "1")
        total = counter.calls(name, "2")
    with Publisher(tmp_path / "home") as publisher:
        models = publisher.models
        publisher.calls("net", "1")
        before = tree(models)
        whole = 0
        for kill_at in range(1, total + 1):
            assert publisher.publish(name, "2", kill_at)[0] == -signal.SIGKILL, kill_at
            if (models / name / "2").exists():
                # The rename was done: the new version is whole, older files are as they were, only `latest` may still name the old one.
                whole += 1
                assert {file.name for file in (models / name / "2").iterdir()} == {"fp32.onnx", "manifest.json", "model.yaml"}
                assert f"{name}:2" in bentoml(tmp_path / "home", "models", "list")
                shutil.rmtree(models / name / "2" if name == "net" else models / name)
                if name == "net":
                    assert (models / name / "latest").read_text() in {"1", "2"}
                    (models / name / "latest").write_text("1")
            assert tree(models) == before, kill_at
        assert 0 < whole < total / 2
        assert publisher.publish(name, "2")[0] == 0
        assert (models / name / "latest").read_text() == "2"


def test_staging_of_a_dead_build_is_swept_and_of_a_living_one_is_not(home: Path) -> None:
    staging = home / "ortserve-staging"
    command = [sys.executable, "-c", DRIVER, "living", "1"]
    with subprocess.Popen(command, env=environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout is not None
        assert living.stdout.readline() == "staged\n"
        [held] = list(staging.iterdir())
        dead = staging / "dead"
        (dead / "net" / "9").mkdir(parents=True)
        (dead / "alive").touch()
        with Publisher(home) as publisher:
            assert publisher.publish("net", "3")[0] == 0
        assert list(staging.iterdir()) == [held]
        living.communicate("", timeout=60)
    assert (home / "models" / "living" / "1" / "fp32.onnx").exists()
    assert list(staging.iterdir()) == []
    assert "ortserve-staging" not in bentoml(home, "models", "list")


def test_two_builds_of_one_name_at_once_both_arrive(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", DRIVER, "both", version] for version in ("1", "2", "3")]
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


def test_existing_version_and_bad_names_are_refused_before_any_work(home: Path) -> None:
    before = tree(home / "models")
    with Publisher(home) as publisher:
        for name, version, words in (("net", "1", "in the store already"), ("Net!", "1", "choose another"), ("net", "latest", "latest")):
            status, [message] = publisher.publish(name, version)  # one line, and "staged" is not it
            assert status == 1
            assert words in message
    assert tree(home / "models") == before


def test_export_and_import_carry_every_byte(home: Path, tmp_path: Path) -> None:
    archive, elsewhere = tmp_path / "net.bentomodel", tmp_path / "elsewhere"
    elsewhere.mkdir()
    bentoml(home, "models", "export", "net:1", str(archive))
    bentoml(elsewhere, "models", "import", str(archive))
    assert tree(elsewhere / "models" / "net" / "1") == tree(home / "models" / "net" / "1")
