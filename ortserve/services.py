"""The two BentoML services: the one that callers ask, and the runner that holds the model for it where the profile's placement is separate.

`placement: in_process`: the runner is left out, every worker has the session and the batcher. `placement: separate`: the workers decode and
answer, one runner process holds session and batcher. It is of the same `bentoml serve`, or one by itself that BentoML's runner map names.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from bentoml._internal.configuration.containers import BentoMLContainer

from ortserve import openapi, readiness
from ortserve.bento import PackagedService
from ortserve.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ortserve.bento import Package
    from ortserve.edge import App, Route
    from ortserve.engine import Engine
    from ortserve.liveness import Liveness
    from ortserve.local_engine import LocalEngine
    from ortserve.model import ServedModel
    from ortserve.readiness import Readiness
    from ortserve.streams import Streams

logger = logging.getLogger("ortserve.services")

_A_SOCKET = "bentoml-uds-12345678/140000000000000.sock"  # as BentoML names it in the temporary folder
RUNNER = "model_runner"  # its name in BentoML's runner map, and for `bentoml start-http-server --service-name`


class OrtService(PackagedService):
    """The service that callers ask: the task's endpoints, and the engine here or in the runner."""

    apis: dict[str, Any]  # BentoML's own: its typed methods by name

    @property
    def worker_count(self) -> int:
        """As many as the profile says."""
        return self.profile.workers

    def begin(self) -> None:
        """As every service; and the runner's socket is one that this machine can make."""
        super().begin()
        from _bentoml_impl.server.serving import MAX_AF_UNIX_PATH_LENGTH  # imported late: only the parent process has it anyway

        longest = len(str(Path(tempfile.gettempdir()) / _A_SOCKET))
        if self.profile.placement == "separate" and longest >= MAX_AF_UNIX_PATH_LENGTH:
            os.environ["BENTOML_NO_UDS"] = "1"  # BentoML would end with an assertion
            logger.warning(
                "the temporary folder's name is too long for a unix socket (%d characters, fewer than %d wanted): a runner of this start "
                "listens on a port of 127.0.0.1; set TMPDIR to a shorter one where this machine has other users",
                longest,
                MAX_AF_UNIX_PATH_LENGTH,
            )

    def all_services(self, exclude_urls: bool = False) -> dict[str, Any]:
        """This one and the runner. Those to start (`exclude_urls`) hold the runner only where the profile places it apart."""
        services: dict[str, Any] = super().all_services(exclude_urls)
        if exclude_urls and self.profile.placement == "in_process":
            services.pop(RUNNER, None)
        return services

    @cached_property
    def engine(self) -> Engine:
        """In this process, or in the runner: then this comes back once the runner is warm. Raises StartupError."""
        return self.open_engine() if self.profile.placement == "in_process" else self._reach_runner()

    def _reach_runner(self) -> Engine:
        from ortserve.remote_engine import RemoteEngine
        from ortserve.runner_stream import Address

        address = BentoMLContainer.remote_runner_mapping.get().get(RUNNER)
        if address is None:
            raise ProfileError(
                f"profile {self.profile.name} has placement: separate, but there is no {RUNNER}: expected `bentoml serve`, which starts "
                f"one, or `bentoml start-http-server --depends {RUNNER}=http://HOST:PORT`"
            )
        engine = RemoteEngine(Address.parse(address), _identity(self.package))
        folder = readiness.run_folder()
        if not asyncio.run(engine.wait_for_runner(lambda: not readiness.parent_lives(folder))):
            raise SystemExit(1)  # nobody is left who would want it
        self.metrics.started(self.package.manifest.name)
        return engine

    @cached_property
    def served(self) -> ServedModel:
        """The model as this worker serves it. Raises StartupError."""
        from ortserve.model import ServedModel

        package = self.package
        return ServedModel(
            manifest=package.manifest,
            version=package.version,
            task=package.task,
            engine=self.engine,
            profile=self.profile,
            observer=self.metrics.for_model(package.manifest.name),
        )

    async def call(self, path: str, **fields: Any) -> Any:
        """What the endpoint answers to these fields, for callers in this process; HTTP requests take the edge's way."""
        from ortserve import replies, requests, routes

        endpoint = next(endpoint for endpoint in self.served.task.endpoints if endpoint.path == path)
        payloads, parameters = await asyncio.to_thread(requests.from_fields, endpoint.takes, fields)
        value, _ = await routes.respond(self.served, endpoint, payloads, parameters)
        return orjson.loads(replies.to_json(value))

    def routes(self, ready: Readiness, lives: Liveness) -> list[Route]:
        """The task's endpoints, the models' facts, health and metrics."""
        from ortserve import routes

        offered = {endpoint.path for endpoint in self.served.task.endpoints}
        self.apis = {name: api for name, api in self.apis.items() if api.route in offered}  # of every task; this model has one
        return routes.build(self.served, self.profile, ready, lives, self.metrics)

    def leave(self) -> None:
        """Where the runner ends too, this worker's rows still go to it."""
        self.engine.stay()

    async def close(self) -> None:
        """Answer what was admitted, then end the threads."""
        await self.served.close()

    @property
    def openapi_spec(self) -> Any:
        """BentoML's OpenAPI document, completed with what our edge adds: GET paths, raw bodies, query parameters, errors."""
        version = (self.bento.tag.version if self.bento else None) or "checkout"
        description = inspect.getdoc(self.inner) or ""
        return openapi.complete(super().openapi_spec, description, version, metrics=self.profile.metrics.port is None)


class OrtRunner(PackagedService):
    """The service that holds session and batcher, and answers API workers over streams. One process: it owns the device."""

    @property
    def worker_count(self) -> int:
        """One."""
        return 1

    def begin(self) -> None:
        """As every service; by itself only where the profile places it apart, or its machine and the others' would not fit together."""
        if self.profile.placement != "separate":
            raise SystemExit(
                f"error: profile {self.profile.name} has placement: {self.profile.placement}, expected separate to serve {RUNNER}: "
                "choose such a profile, or serve model_service"
            )
        super().begin()

    @cached_property
    def engine(self) -> LocalEngine:
        """In this process. Raises StartupError."""
        return self.open_engine()

    def routes(self, ready: Readiness, lives: Liveness) -> list[Route]:
        """Health and metrics."""
        from ortserve import routes

        return routes.health(self.profile, ready, lives, self.metrics, self.engine)

    def in_front(self, edge: App) -> Streams:
        """The streams, and the edge for everything else."""
        from ortserve.streams import Streams

        self._streams = Streams(edge, self.engine, {**_identity(self.package), "engine": self.engine.facts()})
        return self._streams

    def leave(self) -> None:
        """API workers look for another runner, and use this one until they have one."""
        self._streams.leave()


def _identity(package: Package) -> Mapping[str, Any]:
    """What must be the same on both sides of a stream."""
    from ortserve import frames

    manifest = package.manifest
    return {
        "protocol": frames.PROTOCOL,
        "model": manifest.name,
        "version": package.version,
        "sha256": {precision: variant.sha256 for precision, variant in manifest.variants.items()},
    }
