"""Builds a container image and lays its bill of materials beside it: `python -m deploy.image cpu --backend podman`.

The same three commands a person gives, with what BentoML 1.4.39 needs around them: it refuses a Dockerfile template outside the
current folder and unpacks the bento under the temporary one, so `containerize` is called from there; it puts no labels on images.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from deploy.sbom import bill_of_materials

ROOT = Path(__file__).resolve().parent.parent
BENTOFILES = {
    "cuda": ROOT / "bentofile.yaml",
    "cpu": ROOT / "deploy" / "bentofile.cpu.yaml",
    "openvino": ROOT / "deploy" / "bentofile.openvino.yaml",
}


def build(variant: str, *, tag: str, backend: str, out: Path, options: Sequence[str] = ()) -> Path:
    """The SBOM's file, once the image of that variant carries `tag`. `options` are further `--opt` of `bentoml containerize`.

    Raises subprocess.CalledProcessError where a step failed; it has said why.
    """
    bento = _bentoml("build", "-f", str(BENTOFILES[variant].relative_to(ROOT)), "--output", "tag", cwd=ROOT)
    bento = bento.strip().splitlines()[-1].removeprefix("__tag__:")
    folder = _path("get", bento)
    facts = yaml.safe_load((folder / "bento.yaml").read_text(encoding="utf-8"))
    labels = {
        "org.opencontainers.image.version": facts["version"],
        "org.opencontainers.image.created": facts["creation_time"],
        "org.opencontainers.image.revision": _revision(),
        **{f"ortserve.{name}": value for name, value in facts["labels"].items()},
    }
    wanted = [f"label={name}={value}" for name, value in labels.items()]
    if backend == "podman":
        wanted.append("format=docker")  # OCI's own format has no health check
    arguments = [part for option in (*wanted, *options) for part in ("--opt", option)]
    _bentoml("containerize", bento, "--backend", backend, "-t", tag, *arguments, cwd=Path(tempfile.gettempdir()))
    out.mkdir(parents=True, exist_ok=True)
    sbom = out / f"{tag.rpartition('/')[2].replace(':', '-')}.cdx.json"
    sbom.write_text(bill_of_materials(folder, lambda model: _path("models", "get", model)), encoding="utf-8")
    return sbom


def _bentoml(*arguments: str, cwd: Path) -> str:
    """What `bentoml ARGUMENTS` printed on standard output; the rest is shown as it comes."""
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "bentoml", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout


def _path(*arguments: str) -> Path:
    """Where `bentoml ARGUMENTS` says that a bento or a model lies."""
    return Path(_bentoml(*arguments, "--output", "path", cwd=ROOT).strip().splitlines()[-1])


def _revision() -> str:
    """The commit that is checked out, with "-dirty" where files differ from it; "unknown" without git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    """Read the options, build, say where the SBOM lies."""
    parser = argparse.ArgumentParser(prog="python -m deploy.image", description=__doc__)
    parser.add_argument("variant", choices=BENTOFILES)
    parser.add_argument("--backend", default="docker", help="what BentoML builds with: docker, podman, buildah, nerdctl (default: docker)")
    parser.add_argument("--tag", help="the image's name (default: ortserve:VARIANT)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "image", help="folder for the SBOM (default: build/image)")
    parser.add_argument("--opt", action="append", default=[], help="handed to the backend as `bentoml containerize --opt` does")
    chosen = parser.parse_args()
    tag = chosen.tag or f"ortserve:{chosen.variant}"
    try:
        sbom = build(chosen.variant, tag=tag, backend=chosen.backend, out=chosen.out, options=chosen.opt)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: `bentoml {error.cmd[3]}` ended with status {error.returncode}: the lines above say why")
    print(f"{tag} is built, its bill of materials is {sbom}")


if __name__ == "__main__":
    main()
