"""In the parent process: the service ends, with one line and status 1, where a worker fails before one of its kind was ever ready.

BentoML starts a dead worker again for ever. That is right for a worker that served; one that cannot even start would die every ten
seconds behind a port that never answers. The first worker's start is the trial: no process opens the model only to close it again.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from ortserve import readiness

_STOPPED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # how a worker ends whose service was told to stop
_UNSAID = "error: a worker ended before it was ready, the lines above say why: the service stops"
_LOOK_S = 0.1  # between two looks, until a worker of each kind is ready


def watch(run_folder: Path) -> None:
    """Watch the workers of that run folder until one of each service is ready. Call it before the first is started."""
    threading.Thread(target=_watch, args=(run_folder,), name="first-worker", daemon=True).start()


def _watch(run_folder: Path) -> None:
    while not readiness.ever_ready(run_folder):
        died = _died()  # asked first: a worker leaves its line before it ends
        if line := readiness.failure(run_folder) or (_UNSAID if died else None):
            atexit.register(_end_badly, run_folder, line)
            os.kill(os.getpid(), signal.SIGTERM)  # BentoML's own way out: it ends the other workers and closes the socket
            return
        time.sleep(_LOOK_S)


def _died() -> bool:
    """True where any worker ended by itself and badly: killed for memory, say. It is left for BentoML to collect."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13: only what a worker says of itself counts
        return False
    with contextlib.suppress(ChildProcessError):
        end = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return end is not None and end.si_status != 0 and (end.si_code == os.CLD_EXITED or end.si_status not in _STOPPED)
    return False


def _end_badly(run_folder: Path, line: str) -> None:
    """Ends the process from an exit handler, where BentoML would give status 0; those registered earlier no longer run."""
    shutil.rmtree(run_folder, ignore_errors=True)
    logging.shutdown()
    print(line, file=sys.stderr, flush=True)
    os._exit(1)
