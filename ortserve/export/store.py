"""The BentoML model store, written so that a package is there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ortserve.errors import BuildError, SourceError
from ortserve.manifest import Manifest

# Beside `models/`, so on its file system and out of sight of `bentoml models list`.
STAGING = "ortserve-staging"


@dataclass(frozen=True)
class Staged:
    """A folder that becomes the package NAME:VERSION when `publish` is called, and vanishes when it is not."""

    folder: Path
    name: str
    version: str
    models: Path  # the store


@contextlib.contextmanager
def staging(name: str, version: str | None) -> Iterator[Staged]:
    """A staging folder for NAME:VERSION (None: a new version by BentoML's own scheme), removed at the end whatever happens.

    What a killed build left behind is swept first. Raises SourceError where the name is not one BentoML takes or the version exists.
    """
    name, version = _tag(name, version)
    models = _models_folder()
    if (models / name / version).exists():
        raise SourceError(f"{name}:{version} is in the store already: choose another --version, or bentoml models delete {name}:{version}")
    root = models.parent / STAGING
    root.mkdir(exist_ok=True)
    with _locked(root):
        _sweep(root)
        base = Path(tempfile.mkdtemp(dir=root))
        alive = _lock(base / "alive")
    try:
        (base / name / version).mkdir(parents=True)
        yield Staged(base / name / version, name, version, models)
    finally:
        shutil.rmtree(base, ignore_errors=True)
        alive.close()


def publish(staged: Staged, manifest: Manifest) -> str:
    """Write the manifest and BentoML's own facts, then move the folder into the store in one rename. Answers the tag NAME:VERSION.

    BentoML's `ModelStore.register` copies into the store in place: a kill leaves half a model there. A rename cannot be seen half done.
    """
    base, target = staged.folder.parent.parent, staged.models / staged.name
    tag = f"{staged.name}:{staged.version}"
    with _locked(base.parent):  # builds publish one after the other: the last one is the newest and `latest` names it
        manifest.write(staged.folder)
        _write_bentoml_facts(staged, manifest)
        latest = staged.folder.parent / "latest"
        latest.write_text(staged.version)
        for path in (*sorted(staged.folder.iterdir()), staged.folder, latest):
            _flush(path)
        if (target / staged.version).exists():
            raise SourceError(f"{tag} came into the store meanwhile: build again with another --version")
        try:
            if target.exists():
                staged.folder.rename(target / staged.version)
                latest.replace(target / "latest")
            else:  # a new name arrives with its version and its `latest` at once
                staged.folder.parent.rename(target)
        except OSError as error:
            raise BuildError(
                f"cannot move {tag} into the store ({error.strerror}): its models folder must not be a mount of its own"
            ) from error
        _flush(target)
        _flush(staged.models)
    return tag


def _tag(name: str, version: str | None) -> tuple[str, str]:
    from bentoml import Tag
    from bentoml.exceptions import BentoMLException

    try:
        tag = Tag(name, version) if version is not None else Tag(name, None).make_new_version()
    except (BentoMLException, ValueError) as error:
        raise SourceError(
            f"BentoML takes no model called {name}{f':{version}' if version else ''} ({error}): choose another --name"
        ) from None
    if tag.version is None or tag.version == "latest":
        raise SourceError("expected --version to name a version, got 'latest': BentoML gives that name itself")
    return tag.name, tag.version


def _models_folder() -> Path:
    """Where BentoML keeps its models, links resolved: staging must lie on the same file system."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    return Path(BentoMLContainer.model_store_dir.get()).resolve()


def _write_bentoml_facts(staged: Staged, manifest: Manifest) -> None:
    """`model.yaml`, by BentoML's own writer."""
    from bentoml import Tag
    from bentoml._internal.models.model import ModelContext, ModelInfo, ModelOptions

    info = ModelInfo(
        tag=Tag(staged.name, staged.version),
        module="",
        api_version="v1",
        labels={"task": manifest.task},
        options=ModelOptions(),
        metadata={"precisions": ",".join(manifest.variants), "source": manifest.source.reference},
        context=ModelContext(framework_name="", framework_versions={}),
        signatures={},
    )
    with (staged.folder / "model.yaml").open("w", encoding="utf-8") as file:
        info.dump(file)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Alone among the builds of this store. The system frees the lock when its holder dies."""
    with (root.with_name(f"{root.name}.lock")).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lock(path: Path) -> IO[str]:
    """An open file that marks its build as alive."""
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _sweep(root: Path) -> None:
    """Remove the staging folders of builds that are no more."""
    for base in root.iterdir():
        if _is_free(base / "alive"):
            shutil.rmtree(base, ignore_errors=True)


def _is_free(path: Path) -> bool:
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _flush(path: Path) -> None:
    """Force a file's or a folder's content to disk, so that a power cut after the rename finds it whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
