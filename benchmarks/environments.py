"""Environments of the systems that are measured beside this service, each made from its pinned requirements and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.places import ENVIRONMENTS, console

MAIN = Path(sys.executable).parent  # programs of the environment this runs in


def environment(name: str, wanted: Path, *, borrow_torch: bool = False) -> Path:
    """The folder of programs of an environment with the requirements file `wanted` in it, made where it is not there yet.

    `borrow_torch`: what it has not itself is looked for in this project's own environment, so that torch is not there twice.
    """
    folder = ENVIRONMENTS / name
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_bytes() != wanted.read_bytes():
        console.print(f"making the environment of {name}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        command = [str(MAIN / "uv"), "pip", "install", "--quiet", "--python", str(folder / "bin/python"), "-r", str(wanted)]
        subprocess.run(command, check=True, env={**os.environ, **_index()})
        if borrow_torch:
            site = next(folder.glob("lib/python*/site-packages"))
            (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        shutil.copyfile(wanted, stamp)
    return folder / "bin"


def _index() -> dict[str, str]:
    """uv's settings for the index that pip is set up with on this machine, as requirements/install has them."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    ).stdout.strip()
    settings = {"UV_DEFAULT_INDEX": said} if said and "UV_DEFAULT_INDEX" not in os.environ else {}
    certificates = next((os.environ[key] for key in ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE") if os.environ.get(key)), None)
    return settings | ({"SSL_CERT_FILE": certificates} if certificates else {})
