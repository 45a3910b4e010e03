"""Where the benches keep what they make and write what they find."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from tests.serving import ROOT

RESULTS = ROOT / "benchmarks" / "results"
WORK = Path(os.environ.get("BENCHMARK_WORK", ROOT / "benchmarks" / "work"))  # models, environments, half a run: made once, ignored by git
PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = WORK / "environments"
console = Console(stderr=True)
