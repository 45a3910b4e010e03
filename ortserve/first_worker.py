"""In the parent process: the service ends, with one line and status 1, where a worker dies before any was ever ready.

BentoML starts a dead worker again for ever. That is right for a worker that served; one that cannot even start, although the trial
start worked (the profile was changed meanwhile, the memory ran out), would die every ten seconds behind a port that never answers.
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


def watch(run_folder: Path) -> None:
    """Watch the workers of that run folder until one was ready. Call it before the first is started."""
    if hasattr(os, "waitid"):  # not on macOS before Python 3.13
        threading.Thread(target=_watch, args=(run_folder,), name="first-worker", daemon=True).start()


def _watch(run_folder: Path) -> None:
    while not _died():
        time.sleep(0.2)  # no worker yet, or one that was told to stop and was not collected yet
    if readiness.ever_ready(run_folder):
        return
    atexit.register(_end_badly, run_folder)
    os.kill(os.getpid(), signal.SIGTERM)  # BentoML's own way out: it ends the other workers and closes the socket


def _died() -> bool:
    """Wait for the end of any worker and leave it for BentoML to collect; True where it ended by itself and badly."""
    with contextlib.suppress(ChildProcessError):
        end = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        return end is not None and end.si_status != 0 and (end.si_code == os.CLD_EXITED or end.si_status not in _STOPPED)
    return False


def _end_badly(run_folder: Path) -> None:
    """Ends the process from an exit handler, where BentoML would give status 0; those registered earlier no longer run."""
    shutil.rmtree(run_folder, ignore_errors=True)
    logging.shutdown()
    print("error: a worker ended before it was ready, the lines above say why: the service stops", file=sys.stderr, flush=True)
    os._exit(1)
