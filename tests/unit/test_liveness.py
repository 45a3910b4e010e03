"""Which processes must live: one that ends in order, one that dies, and who starts others in their place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ortserve.liveness import Liveness
from tests.serving import ROOT

ENTER = "import sys, pathlib, ortserve.liveness as l; life = l.Liveness(pathlib.Path(sys.argv[1]), replaced=False); life.enter()"


@pytest.mark.parametrize(("ends", "lost"), [("; life.leave()", 0), ("; import os; os._exit(1)", 1)], ids=["in order", "dies"])
def test_only_a_process_that_dies_is_lost(tmp_path: Path, ends: str, lost: int) -> None:
    mine = Liveness(tmp_path, replaced=False)
    mine.enter()
    subprocess.run([sys.executable, "-c", ENTER + ends, str(tmp_path)], cwd=ROOT, check=False, timeout=60)
    assert mine.lost() == lost
    assert Liveness(tmp_path, replaced=True).lost() == 0  # BentoML starts another
