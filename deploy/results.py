"""The committed figures of the proof: `python -m deploy.results` takes those of the last runs of deploy/prove and writes the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deploy.image import BENTOFILES, ROOT

FOLDER = ROOT / "deploy" / "results"


def table(folder: Path) -> str:
    """The figures of every image proved, in Markdown."""
    proofs = [json.loads(path.read_text(encoding="utf-8")) for name in BENTOFILES if (path := folder / f"prove-{name}.json").exists()]
    return "\n\n".join((_sizes(proofs), _stops(proofs), _seconds(proofs))) + "\n"


def _sizes(proofs: list[dict[str, Any]]) -> str:
    rows = ["| image | MB | of these the base | packages | the largest, MB |", "|---|---|---|---|---|"]
    for proof in proofs:
        largest = ", ".join(f"{name} {size}" for name, size in proof["largest_packages_mb"].items())
        rows.append(f"| {proof['image']} | {proof['image_mb']} | {proof['base_mb']} | {proof['packages']} | {largest} |")
    return "\n".join(rows)


def _stops(proofs: list[dict[str, Any]]) -> str:
    rows = ["| image | in flight at SIGTERM | s to not ready | answered after that | lost | exit status |", "|---|---|---|---|---|---|"]
    for proof in proofs:
        names = ("image", "in_flight_at_sigterm", "seconds_to_not_ready", "answered_while_not_ready", "lost", "exit_status")
        rows.append("| " + " | ".join(str(proof[name]) for name in names) + " |")
    return "\n".join(rows)


def _seconds(proofs: list[dict[str, Any]]) -> str:
    steps = list(dict.fromkeys(step for proof in proofs for step in proof["seconds"]))
    rows = [f"| seconds, on {proofs[0]['cpus']} CPUs | {' | '.join(steps)} | all |", "|---" * (len(steps) + 2) + "|"]
    for proof in proofs:
        cells = [str(proof["seconds"].get(step, "")) for step in steps]
        rows.append(f"| {proof['image']}, {proof['date']} | {' | '.join(cells)} | {proof['total_s']} |")
    return "\n".join(rows)


def main() -> None:
    """Take the new figures, write the table."""
    FOLDER.mkdir(exist_ok=True)
    for path in (ROOT / "build" / "prove").glob("prove-*.json"):
        shutil.copy(path, FOLDER / path.name)
    (FOLDER / "prove.md").write_text(table(FOLDER), encoding="utf-8")


if __name__ == "__main__":
    main()
