"""Where the benches keep what they make and write what they find."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from rich.console import Console

from tests.serving import ROOT

RESULTS = ROOT / "benchmarks" / "results"
WORK = Path(os.environ.get("BENCHMARK_WORK", ROOT / "benchmarks" / "work"))  # models, environments, half a run: made once, ignored by git
PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = WORK / "environments"
console = Console(stderr=True)


def digest_of(*patterns: str) -> str:
    """Of the project's files that match: whether they are what they were."""
    files = sorted(file for pattern in patterns for file in ROOT.glob(pattern))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
