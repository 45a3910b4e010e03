"""Programs of Debian's packages that tests run for real: found, or installed where that may be done, or said to be missing in one line."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


def program(name: str, package: str | None = None) -> str:
    """The path of that program; installed from `package` (its own name if not given) where it is missing and this process is root."""
    package = package or name
    if (found := shutil.which(name, path=_PATH)) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package]):
            command = ["apt-get", "--quiet", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode != 0:
                pytest.fail(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.fail(f"this test needs {name}: install it (Debian, Ubuntu: apt-get install {package}), or run the tests as root")
    return found
