"""The seam to BentoML: a `Service` that pins its models, watches its first workers' start, and puts our edge in front of BentoML's app."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bentoml
from _bentoml_sdk.service import Service
from bentoml.serving import running_inside_container

from ortserve import first_worker, liveness, logs, model_store, multiprocess, parent, readiness, startup, tracing
from ortserve.errors import StartupError
from ortserve.execution import Execution
from ortserve.profile import Profile

if TYPE_CHECKING:
    from bentoml import Bento

    from ortserve.edge import App, Route
    from ortserve.engine import Engine
    from ortserve.liveness import Liveness
    from ortserve.local_engine import LocalEngine
    from ortserve.manifest import Manifest
    from ortserve.metrics import Metrics
    from ortserve.readiness import Readiness
    from ortserve.tasks import Task

logger = logging.getLogger("ortserve.bento")


@dataclass(frozen=True)
class Package:
    """A model package, read, its task, and the profile as this model runs."""

    folder: Path
    version: str
    manifest: Manifest
    task: Task
    profile: Profile


class PackagedService(Service[Any]):
    """A BentoML service around packaged models, `inner.models`. `inner.profile` decides how it runs; `services.py` has those there are."""

    def __attrs_post_init__(self) -> None:
        """Take the models, and be told before the first worker is started."""

        def begin() -> None:
            self.begin()

        self.inner.begin = bentoml.on_deployment(begin)  # BentoML looks for it there
        super().__attrs_post_init__()
        self.models.extend(self.inner.models)

    @property
    def worker_count(self) -> int:
        """How many worker processes of this service a start has."""
        raise NotImplementedError

    @cached_property
    def engines(self) -> Mapping[str, Engine]:
        """What answers this worker's rows, once it can, by the model's name. Raises StartupError."""
        raise NotImplementedError

    def holds(self, name: str) -> bool:  # noqa: ARG002  the runners' own
        """Whether the model of that name, one of those that are served, is this service's."""
        return True

    def routes(self, ready: Readiness, lives: Liveness) -> list[Route]:
        """What this worker's edge answers."""
        raise NotImplementedError

    def in_front(self, edge: App) -> App:
        """The whole application: the edge, or what stands in front of it."""
        return edge

    def leave(self) -> None:
        """This worker was told to end, and answers on for a while."""

    async def close(self) -> None:
        """Answer what was admitted."""
        await asyncio.gather(*(engine.close() for engine in self.engines.values()))

    @property
    def profile(self) -> Profile:
        """The profile `service.py` read."""
        profile: Profile = self.inner.profile
        return profile

    def on_load_bento(self, bento: Bento) -> None:
        """Take the bento's pinned models, exiting with one line where one is not in the store: BentoML would ask its cloud."""
        super().on_load_bento(bento)
        with startup.exit_with_one_line():
            for info in bento.info.all_models:
                model_store.stored(info.tag)

    def selected(self) -> list[Any]:
        """The stored models to serve: in a bento of its own list, else those that were asked for. Raises ModelError."""
        if self.bento is None:
            return [model.resolve() for model in self.models if self.holds(model.tag.name)]
        info = self.bento.info
        pinned = [model.tag for model in info.all_models]
        if os.environ.get(startup.MODEL_ENV) or self.profile.models:
            tags = [model_store.pinned(wanted, pinned) for wanted in startup.wanted_tags(self.profile)]
        else:
            tags = [model.tag for model in next(service for service in info.services if service.name == info.entry_service).models]
        return [model_store.stored(tag) for tag in tags if self.holds(tag.name)]

    def begin(self) -> None:
        """In the parent, before any worker exists: the models are chosen, the run folder made, the first workers watched."""
        logs.configure(self.profile.logging)
        with startup.exit_with_one_line():
            self.selected()
            begun = readiness.begun()  # by the service whose runner this is
            folder = begun or readiness.create_run_folder()
            readiness.expect(folder, self.name, self.worker_count)
            if begun is None:
                self._open_metrics_port(folder)
                first_worker.watch(folder)
                parent.hear_every_signal(folder)

    def _open_metrics_port(self, folder: Path) -> None:
        """Answer `/metrics` from this process where the profile gives it a port of its own; else load nothing for it."""
        if self.profile.metrics.port is None:
            return
        multiprocess.enter(folder / "metrics")
        from ortserve import metrics_port

        ready = readiness.Readiness(folder, self.name)
        metrics_port.start(self.profile.metrics.host, self.profile.metrics.port, self.metrics, ready)

    @cached_property
    def metrics(self) -> Metrics:
        """What this process counts. To be asked for after `multiprocess.enter()`."""
        from ortserve.metrics import Metrics  # imported late: prometheus_client looks for its folder when it is imported

        return Metrics(
            service=self.bento.tag.name if self.bento else self.name,
            version=(self.bento.tag.version if self.bento else None) or "not available",
            runner=self.name,
        )

    @cached_property
    def packages(self) -> Mapping[str, Package]:
        """The packages to serve and their tasks, by name. Raises StartupError."""
        from ortserve import tasks
        from ortserve.manifest import Manifest

        packages = {}
        for stored in self.selected():
            folder = Path(stored.path)
            manifest = Manifest.read(folder)
            profile = self.profile.for_model(manifest.name)
            packages[manifest.name] = Package(folder, stored.tag.version or "", manifest, tasks.load(manifest, folder, profile), profile)
        return packages

    def open_engines(self) -> Mapping[str, LocalEngine]:
        """The packages' engines in this process, warm, each on a confirmed provider. Raises StartupError."""
        self.metrics.started()
        folder = readiness.run_folder()
        place = startup.place_among_workers(folder, self.name)
        return {name: self._open(package, folder, place) for name, package in self.packages.items()}

    def _open(self, package: Package, folder: Path, place: int) -> LocalEngine:
        from ortserve import local_engine  # imported late: only the process with the session needs ONNX Runtime

        name, profile = package.manifest.name, package.profile

        def open_on(execution: Execution) -> LocalEngine:
            return local_engine.LocalEngine.open(
                package.folder,
                package.manifest,
                outputs=package.task.outputs,
                profile=profile,
                execution=startup.on_own_device(execution, place),
                observer=self.metrics.for_model(name),
            )

        engine = startup.open_agreed(folder, profile, name, open_on)
        facts = engine.facts()
        self.metrics.describe(
            model=name,
            version=package.version,
            task=package.manifest.task,
            precision=facts["precision"],
            sha256=facts["sha256"],
            provider=facts["provider"],
            onnxruntime_version=local_engine.onnxruntime_version(),
        )
        logger.info("serving %s:%s, %s, on %s, profile %s", name, package.version, facts["precision"], facts["provider"], profile.name)
        return engine

    def to_asgi(self, is_main: bool = True) -> App:
        """The worker's application: our edge in front of BentoML's."""
        logs.configure(self.profile.logging)
        folder = readiness.run_folder()
        try:
            app = self._edge(folder, is_main=is_main)
        except StartupError as error:
            raise SystemExit(readiness.report_failure(folder, f"error: {error}")) from None
        for middleware, options in reversed(self.middlewares):
            app = middleware(app, **options)
        return app

    def _edge(self, folder: Path, *, is_main: bool) -> App:
        lives = liveness.Liveness(folder, replaced=not running_inside_container())
        lives.enter()
        multiprocess.enter(folder / "metrics")
        from starlette.routing import Mount

        from ortserve.app import AppFactory  # imported late, with all of BentoML's server: the parent process needs none of it
        from ortserve.drain import Drain
        from ortserve.edge import Edge

        self.inject_config()
        ready = readiness.Readiness(folder, self.name)
        leaving = [ready.unmark, self.leave]
        if readiness.made_here(folder):  # there is no parent to do it
            readiness.expect(folder, self.name, self.worker_count)
            self._open_metrics_port(folder)
        routes = self.routes(ready, lives)
        tracer = tracing.configure(self.profile.tracing, service_name=self.name, service_version=self._version())

        async def start() -> None:
            for engine in self.engines.values():
                await engine.start()

        async def close() -> None:
            await self.close()
            if tracer is not None:
                await asyncio.to_thread(tracer.close)

        drain = Drain(
            self.profile.stopping.drain_delay_ms / 1000,
            leave=lambda: [step() for step in leaving],
            at_once=lambda: parent.stops_at_once(folder),
            parent_lives=lambda: readiness.parent_lives(folder),
        )
        inner = AppFactory(self, ready, lives, drain, start, close, is_main=is_main)()
        own = {route.path for route in inner.routes if not isinstance(route, Mount) and hasattr(route, "path")}
        edge = Edge(
            inner,
            routes,
            passed_on=sorted(own - {"/metrics"}),  # that is ours, or nobody's where it has a port of its own
            mounts=[route.path.rstrip("/") + "/" for route in inner.routes if isinstance(route, Mount)],
            metrics=self.metrics,
            tracer=tracer,
            access_log=self.profile.logging.access_log,
        )
        if find_spec("httptools") is not None:  # else uvicorn takes h11, which has limits of its own
            from ortserve import connection
            from ortserve.accepting import Accepting

            connection.install(edge.door, Accepting(drain.listening, sharing=self.worker_count))
            leaving.append(connection.let_go)
        return self.in_front(edge)

    def _version(self) -> str:
        """What a trace shows: the bento's, or that of the one model of a checkout."""
        if self.bento is not None:
            return self.bento.tag.version or ""
        return ", ".join(package.version for package in self.packages.values())
