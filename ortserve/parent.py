"""The parent process hears every signal to stop, and says whether there is a hurry.

circus, under BentoML, drops a signal that comes while it is busy: in the milliseconds in which a worker is made, or every ten seconds
while it looks after its workers. Whoever stopped the service then waits for ever. Here the stop is tried again until it is taken.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from circus.exc import ConflictError
from circus.sighandler import SysHandler

_AT_ONCE = "at_once"
_TRY_AGAIN_S = 0.05


def hear_every_signal(run_folder: Path) -> None:
    """Take the place of circus's handling of signals to stop. Call it before circus sets its handlers."""

    def stop(handler: Any) -> None:
        handler.controller.loop.add_callback_from_signal(_stop, handler.controller.arbiter)

    def stop_at_once(handler: Any) -> None:
        (run_folder / _AT_ONCE).touch()
        stop(handler)

    SysHandler.quit = stop
    SysHandler.handle_int = stop_at_once  # Ctrl-C: a person waits, and no load balancer is to be told


def stops_at_once(run_folder: Path) -> bool:
    """Whether the service was told to stop by somebody who waits for it."""
    return (run_folder / _AT_ONCE).exists()


async def _stop(arbiter: Any) -> None:
    while True:
        try:
            await arbiter.stop()
        except ConflictError:
            await asyncio.sleep(_TRY_AGAIN_S)
        else:
            return
