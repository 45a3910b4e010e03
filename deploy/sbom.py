"""The bill of materials of a bento's image, as CycloneDX 1.6: its models, and every locked package that its platform takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What the image is: Python 3.11 on 64-bit Linux. The lock is for every platform; markers choose.
PLATFORM = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.2",
    "python_version": "3.11",
    "sys_platform": "linux",
}


def bill_of_materials(bento: Path, model_folder: Callable[[str], Path]) -> str:
    """The CycloneDX document, in JSON, of the bento in that folder; `model_folder` says where the model of a tag lies."""
    facts = yaml.safe_load((bento / "bento.yaml").read_text(encoding="utf-8"))
    lock = (bento / "env" / "python" / "requirements.txt").read_text(encoding="utf-8")
    tags = sorted(
        {model["tag"] for service in facts["services"] for model in service["models"]} | {model["tag"] for model in facts["models"]}
    )
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": facts["creation_time"],
            "component": {"type": "application", "bom-ref": "bento", "name": facts["name"], "version": facts["version"]},
        },
        "components": [*(_model(tag, model_folder(tag)) for tag in tags), *map(_package, sorted(packages(lock).items()))],
    }
    return json.dumps(document, indent=1) + "\n"


def packages(lock: str) -> dict[str, str]:
    """Name to version of what the lock installs on the image's platform."""
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in _pins(lock) if _wanted(pin)}


def _pins(lock: str) -> Iterator[Requirement]:
    for line in lock.splitlines():
        if re.match(r"[A-Za-z0-9]", line):
            yield Requirement(line.removesuffix("\\").strip())


def _wanted(pin: Requirement) -> bool:
    return pin.marker is None or pin.marker.evaluate(PLATFORM)


def _package(pin: tuple[str, str]) -> dict[str, Any]:
    name, version = pin
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _model(tag: str, folder: Path) -> dict[str, Any]:
    variants = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["variants"]
    name, _, version = tag.partition(":")
    return {
        "type": "machine-learning-model",
        "bom-ref": f"model:{tag}",
        "name": name,
        "version": version,
        "components": [
            {
                "type": "file",
                "bom-ref": f"model:{tag}/{variant['file']}",
                "name": variant["file"],
                "hashes": [{"alg": "SHA-256", "content": variant["sha256"]}],
            }
            for variant in variants.values()
        ],
    }
