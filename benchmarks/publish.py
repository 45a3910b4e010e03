"""Writes the committed results into README and docs: `python -m benchmarks.publish`. A test compares, so no other number stands there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/DEPLOY.md",
    "docs/DESIGN.md",
    "docs/KUBERNETES.md",
    "docs/PERFORMANCE.md",
    "docs/PROTOCOL.md",
    "docs/TUNING.md",
    "docs/WATCH.md",
)
RESULTS = (ROOT / "benchmarks" / "results", ROOT / "deploy" / "results", ROOT / "docs" / "tuning")
_BLOCK = re.compile(r"(<!-- (?P<name>[a-z0-9_]+\.md): written by [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)


def published(text: str) -> str:
    """The page with each marked block replaced by the results file it names."""
    return _BLOCK.sub(lambda block: block[1] + _result(block["name"]) + block[3], text)


def _result(name: str) -> str:
    found = [folder / name for folder in RESULTS if (folder / name).exists()]
    return found[0].read_text(encoding="utf-8") if found else "Not measured yet.\n"


def main() -> None:
    """Rewrite every page."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(published(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
