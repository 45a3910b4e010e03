"""podman as it runs on a machine without systemd, with a store of its own that is removed in the end."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

_ENGINE = """\
[containers]
default_ulimits = ["nofile={nofile}:{nofile}", "nproc={nproc}:{nproc}"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_STORE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/graph"
runroot = "{folder}/run"
"""
_MOST = 1024  # neither limit above the host's, or the container does not start; enough for the service


class CannotRun(Exception):
    """This machine runs no containers. The message is the one line to end with."""


class Podman:
    """podman with its own settings and store, as a context manager: inside the block os.environ points every podman there."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="prove-", dir="/var/tmp"))  # an overlay cannot lie on an overlay or a tmpfs
        nofile, nproc = (_limit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
        files = {
            "CONTAINERS_CONF": _ENGINE.format(nofile=nofile, nproc=nproc),
            "CONTAINERS_STORAGE_CONF": _STORE.format(folder=self.folder),
        }
        for variable, text in files.items():
            path = self.folder / f"{variable.lower()}.conf"
            path.write_text(text)
            os.environ[variable] = str(path)

    def __enter__(self) -> Podman:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for arguments in (["rm", "--all", "--force", "--time", "0"], ["image", "umount", "--all"], ["rmi", "--all", "--force"]):
            subprocess.run(["podman", *arguments], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, *arguments: str, check: bool = True, timeout_s: float = 300) -> str:
        """What `podman ARGUMENTS` printed. Raises AssertionError with its words where it failed and `check` is set."""
        result = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
        assert not check or result.returncode == 0, f"podman {' '.join(arguments)} ended with {result.returncode}: {result.stderr.strip()}"
        return result.stdout

    def inspect(self, what: str) -> dict[str, Any]:
        """The facts of a container or an image."""
        facts: dict[str, Any] = json.loads(self("inspect", what))[0]
        return facts

    def make_base_image(self, name: str) -> None:
        """A Debian 12 with Python 3.11 and pip under the name the Dockerfile asks for: no registry of images is needed.

        The host's certificates come along: the registries of packages may be reached through them only.
        Raises CannotRun where a container of it does not start.
        """
        root = self.folder / "base.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,python3-pip,ca-certificates"]
        for left_out in ("doc", "man", "locale"):
            command.append(f"--dpkgopt=path-exclude=/usr/share/{left_out}/*")
        command.append("--customize-hook=copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs")
        command.append('--customize-hook=rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED')
        subprocess.run([*command, "bookworm", str(root)], check=True, stdin=subprocess.DEVNULL)
        self("import", str(root), f"docker.io/library/{name}")
        root.unlink()
        result = subprocess.run(
            ["podman", "run", "--rm", "--network", "host", f"docker.io/library/{name}", "python3", "--version"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if result.returncode != 0:
            raise CannotRun(f"this machine cannot run containers: {' '.join(result.stderr.split())}")


def _limit(kind: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return _MOST if hard == resource.RLIM_INFINITY else min(_MOST, hard)
