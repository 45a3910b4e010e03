"""`make parity`: every kind of model built for real, and how far each stored precision is from the model it was made of.

Builds each package below in a temporary store, reads the parity report out of its manifest, and writes `benchmarks/results/parity.json`
and `parity.md`. Exits with 1 where a build does not end as it should.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from ortserve.export.report import size
from ortserve.manifest import Difference, Manifest, ParityReport
from tests.detectors import face_pictures, faces_onnx
from tests.serving import ROOT, bentoml_environment
from tests.texts import minilm, tiny_classifier

RESULTS = ROOT / "benchmarks" / "results"
console = Console(stderr=True)


@dataclass(frozen=True)
class Case:
    """One package: how the table calls it, and what `build_model.py` is given."""

    shown: str
    arguments: tuple[str, ...]


def cases(folder: Path) -> Sequence[Case]:
    """The packages of the table; `folder` is for files they are made of."""
    colours = folder / "colours"
    tiny_classifier(folder / "classifier")
    subprocess.run([sys.executable, "examples/research/train.py", str(colours)], cwd=ROOT, check=True, capture_output=True)
    return (
        Case("digits (trained)", ("digits", "--precision", "fp32,fp16,int8")),
        Case(
            "examples/research (trained)",
            (
                *("examples/research/net.py:build", "--weights", f"{colours}/checkpoint.pth", "--labels", f"{colours}/labels.txt"),
                *("--input-size", "32", "--precision", "fp32,fp16,int8", "--calibration", f"{colours}/pictures"),
            ),
        ),
        Case("resnet50 (random weights)", ("resnet50", "--weights", "random")),
        Case("timm:resnet18 (random weights)", ("timm:resnet18", "--weights", "random")),
        Case(
            "examples/faces (trained)",
            (
                *(str(faces_onnx(folder / "faces.onnx")), "--task", "object-detection", "--labels", "examples/faces/labels.txt"),
                *("--max-batch", "4", "--precision", "fp32,fp16,int8", "--calibration", str(face_pictures(folder / "faces", 90))),
            ),
        ),
        Case("ssdlite320 (random weights)", ("ssdlite320_mobilenet_v3_large", "--weights", "random", "--max-batch", "4")),
        Case("all-MiniLM-L6-v2 (trained)", (f"hf:{minilm()}", "--precision", "fp32,fp16,int8")),
        Case("a BERT of two layers (random weights)", (f"hf:{folder / 'classifier'}",)),
    )


def main() -> None:
    """Build every package and write the table."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        home = Path(work) / "bentoml"
        home.mkdir()
        for index, case in enumerate(cases(Path(work))):
            console.print(f"building {case.shown}")
            name = f"parity-{index}"
            command = [sys.executable, "build_model.py", *case.arguments, "--name", name, "--version", "1"]
            done = subprocess.run(command, cwd=ROOT, env=bentoml_environment(home), capture_output=True, text=True, check=False)
            if done.returncode:
                console.print(done.stdout + done.stderr, markup=False, highlight=False)
                raise typer.Exit(1)
            rows += described(case, Manifest.read(home / "models" / name / "1"))
    result = {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows}
    (RESULTS / "parity.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "parity.md").write_text(table(result), encoding="utf-8")
    print(table(result))


def described(case: Case, manifest: Manifest) -> list[dict[str, Any]]:
    """One row of the table for each precision of a package."""
    return [
        {
            "task": manifest.task,
            "model": case.shown,
            "precision": precision,
            "size_bytes": variant.size_bytes,
            "reference": variant.parity.reference,
            "checks": len(variant.parity.checks),
            "outputs": {name: worst(variant.parity, name).model_dump() for name in variant.parity.checks[0].outputs},
            "agreement": variant.parity.agreement.model_dump(),
        }
        for precision, variant in manifest.variants.items()
    ]


def worst(parity: ParityReport, output: str) -> Difference:
    """Of one output, the difference that comes nearest to its limit."""
    return max((check.outputs[output] for check in parity.checks), key=lambda difference: difference.max_abs / difference.limit)


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"Built {result['measured_at'][:10]}. A difference is the largest of any check at any batch size, with the limit it must not pass; "
        "agreement is counted on samples like those that are served.",
        "",
        "| task | model | precision | size | largest difference (limit) | agreement (at least, of samples) |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        outputs = ", ".join(f"{name} {one['max_abs']:.1e} ({one['limit']:g})" for name, one in row["outputs"].items())
        agreement = row["agreement"]
        shown = "not measurable"
        if agreement["value"] is not None:
            shown = f"{agreement['measure']} {agreement['value']:.2%} ({agreement['limit']:.1%} of {agreement['samples']})"
        lines.append(f"| {row['task']} | {row['model']} | {row['precision']} | {size(row['size_bytes'])} | {outputs} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
