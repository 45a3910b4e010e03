"""BentoML's application as the edge needs it: its lifespan and its own paths, without its middlewares."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from _bentoml_impl.server.app import ContextMiddleware, ServiceAppFactory
from _bentoml_sdk.service import Service
from starlette.applications import Starlette
from starlette.middleware import Middleware

from ortserve.drain import Drain
from ortserve.liveness import Liveness
from ortserve.readiness import Readiness

# Objects made and not yet gone, before the youngest are looked through for cycles: requests make few, and with the usual 700 looking took
# some two per cent of the CPU time of a model that costs nothing.
GARBAGE = 20_000


class AppFactory(ServiceAppFactory):
    """BentoML's application without its middlewares, whose work the edge and the batcher do, and with our readiness."""

    def __init__(
        self,
        service: Service[Any],
        ready: Readiness,
        liveness: Liveness,
        drain: Drain,
        start: Callable[[], Awaitable[None]],
        close: Callable[[], Awaitable[None]],
        *,
        is_main: bool,
    ) -> None:
        super().__init__(service, is_main=is_main, enable_metrics=False)
        self._ready = ready
        self._liveness = liveness
        self._drain = drain
        self._start = start
        self._close = close

    @property
    def middlewares(self) -> list[Middleware]:
        """Only the one that user-defined APIs need."""
        return [Middleware(ContextMiddleware, context=self.service.context)]

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None, None]:
        """Ready once BentoML's own start is done; on the way out nothing new, then everything admitted answered."""
        async with super().lifespan(app):
            await self._start()
            gc.collect()
            gc.freeze()  # what is here now stays; every full collection walks all of it else, and nobody is answered meanwhile
            gc.set_threshold(GARBAGE)
            self._drain.arm()
            self._ready.mark()
            yield
            self._ready.unmark()
            await self._close()
        self._liveness.leave()
