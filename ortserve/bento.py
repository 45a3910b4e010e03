"""The seam to BentoML: a `Service` that pins its model, watches its first worker's start, and puts our edge in front of BentoML's app."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from _bentoml_sdk.service import Service
from bentoml import Tag
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.models import BentoModel
from bentoml.serving import running_inside_container

from ortserve import first_worker, liveness, logs, multiprocess, openapi, parent, readiness, startup, tracing
from ortserve.errors import ModelError, StartupError
from ortserve.profile import Execution, Profile

if TYPE_CHECKING:
    from bentoml import Bento

    from ortserve.edge import App
    from ortserve.metrics import Metrics
    from ortserve.model import ServedModel

logger = logging.getLogger("ortserve.bento")


def wanted_model() -> BentoModel:
    """The model that ORTSERVE_MODEL names, "digits" where it is unset. Raises ModelError where that is no tag."""
    text = os.environ.get(startup.MODEL_ENV) or "digits"
    try:
        return PackagedModel(text)
    except (BentoMLException, ValueError) as error:
        raise ModelError(f"{startup.MODEL_ENV}={text!r} is no model tag: expected NAME or NAME:VERSION ({error})") from None


class PackagedModel(BentoModel):
    """A model of the local store; never looked for anywhere else."""

    def resolve(self, base_path: Any = None, *_: Any) -> Any:
        """The stored model. Exits with one line where the store does not have it: BentoML would ask its cloud."""
        if self.stored is None:
            with exit_with_one_line():
                raise ModelError(
                    f"model {self.tag} is not in the BentoML store: expected a package made by `python build_model.py` or brought by "
                    f"`bentoml models import FILE`; `bentoml models list` shows what is there, {startup.MODEL_ENV} chooses"
                )
        return super().resolve(base_path) if base_path is not None else self.stored


@contextlib.contextmanager
def exit_with_one_line() -> Iterator[None]:
    """Turn a StartupError into one line on standard error and exit status 1."""
    try:
        yield
    except StartupError as error:
        raise SystemExit(f"error: {error}") from None


class OrtService(Service[Any]):
    """A BentoML service around one packaged model. `inner.profile` decides how it runs."""

    apis: dict[str, Any]  # BentoML's own: its typed methods by name

    @property
    def profile(self) -> Profile:
        """The profile `service.py` read."""
        profile: Profile = self.inner.profile
        return profile

    def on_load_bento(self, bento: Bento) -> None:
        """Take the bento's pinned models, exiting with one line where one is not in the store: BentoML would ask its cloud."""
        super().on_load_bento(bento)
        with exit_with_one_line():
            for info in bento.info.all_models:
                _stored(info.tag)

    def selected(self) -> Any:
        """The stored model to serve: in a bento one of its own list, else the one ORTSERVE_MODEL names. Raises ModelError."""
        if self.bento is None:
            return self.models[0].resolve()
        pinned = [info.tag for info in self.bento.info.all_models]
        own = next(info for info in self.bento.info.services if info.name == self.name).models
        wanted = os.environ.get(startup.MODEL_ENV)
        tag = next((tag for tag in pinned if wanted in (str(tag), tag.name)), None) if wanted else own[0].tag
        if tag is None:
            raise ModelError(
                f"{startup.MODEL_ENV}={wanted} is not in this bento: expected one of {', '.join(map(str, pinned))}; "
                f"unset it to serve {own[0].tag}"
            )
        return _stored(tag)

    def begin(self) -> None:
        """In the parent, before any worker exists: the model is chosen, the run folder made, the first worker watched."""
        logs.configure(self.profile.logging)
        with exit_with_one_line():
            self.selected()
            folder = readiness.create_run_folder()
            self._open_metrics_port(folder)
        first_worker.watch(folder)
        parent.hear_every_signal(folder)

    def _open_metrics_port(self, folder: Path) -> None:
        """Answer `/metrics` from this process where the profile gives it a port of its own; else load nothing for it."""
        if self.profile.metrics.port is None:
            return
        multiprocess.enter(folder / "metrics")
        from ortserve import metrics_port

        ready = readiness.Readiness(folder, self.profile.workers)
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
    def served(self) -> ServedModel:
        """The open model of this worker process, warm, on a confirmed provider. Raises StartupError."""
        from ortserve.model import ServedModel, onnxruntime_version  # imported late: the parent process needs no ONNX Runtime

        stored = self.selected()

        def open_model(execution: Execution) -> ServedModel:
            return ServedModel(
                folder=Path(stored.path),
                version=stored.tag.version or "",
                profile=self.profile,
                execution=execution,
                observer=self.metrics.for_model(stored.tag.name),
            )

        served = startup.open_agreed(readiness.run_folder(), self.profile, open_model)
        self.metrics.describe(
            model=served.name,
            version=served.version,
            task=served.manifest.task,
            precision=served.precision,
            sha256=served.manifest.variants[served.precision].sha256,
            provider=served.session.provider,
            onnxruntime_version=onnxruntime_version(),
        )
        logger.info("serving %s, %s, on %s, profile %s", stored.tag, served.precision, served.session.provider, self.profile.name)
        return served

    async def call(self, path: str, **fields: Any) -> Any:
        """What the endpoint answers to these fields, for callers in this process; HTTP requests take the edge's way."""
        from ortserve import replies, requests, routes

        endpoint = next(endpoint for endpoint in self.served.task.endpoints if endpoint.path == path)
        payloads, parameters = await asyncio.to_thread(requests.from_fields, endpoint.takes, fields)
        value, _ = await routes.respond(self.served, endpoint, payloads, parameters)
        return orjson.loads(replies.to_json(value))

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

        from ortserve import routes
        from ortserve.app import AppFactory  # imported late, with all of BentoML's server: the parent process needs none of it
        from ortserve.drain import Drain
        from ortserve.edge import Edge

        self.inject_config()
        ready = readiness.Readiness(folder, self.profile.workers)
        leaving = [ready.unmark]
        if find_spec("httptools") is not None:  # else uvicorn takes h11, which has limits of its own
            from ortserve import connection

            connection.install()
            leaving.append(connection.let_go)
        if readiness.made_here(folder):  # there is no parent to do it
            self._open_metrics_port(folder)
        offered = {endpoint.path for endpoint in self.served.task.endpoints}
        self.apis = {name: api for name, api in self.apis.items() if api.route in offered}  # of every task; this model has one
        tracer = tracing.configure(self.profile.tracing, service_name=self.name, service_version=self.served.version)

        async def close() -> None:
            await self.served.close()
            if tracer is not None:
                await asyncio.to_thread(tracer.close)

        drain = Drain(
            self.profile.stopping.drain_delay_ms / 1000,
            leave=lambda: [step() for step in leaving],
            at_once=lambda: parent.stops_at_once(folder),
            parent_lives=lambda: readiness.parent_lives(folder),
        )
        inner = AppFactory(self, ready, lives, drain, close, is_main=is_main)()
        own = {route.path for route in inner.routes if not isinstance(route, Mount) and hasattr(route, "path")}
        return Edge(
            inner,
            routes.build(self.served, self.profile, ready, lives, self.metrics),
            passed_on=sorted(own - {"/metrics"}),  # that is ours, or nobody's where it has a port of its own
            mounts=[route.path.rstrip("/") + "/" for route in inner.routes if isinstance(route, Mount)],
            metrics=self.metrics,
            tracer=tracer,
            access_log=self.profile.logging.access_log,
        )

    @property
    def openapi_spec(self) -> Any:
        """BentoML's OpenAPI document, completed with what our edge adds: GET paths, raw bodies, query parameters, errors."""
        version = (self.bento.tag.version if self.bento else None) or "checkout"
        description = inspect.getdoc(self.inner) or ""
        return openapi.complete(super().openapi_spec, description, version, metrics=self.profile.metrics.port is None)


def _stored(tag: Tag) -> Any:
    import bentoml

    try:
        return bentoml.models.get(tag)
    except NotFound:
        raise ModelError(
            f"model {tag}, pinned by this bento, is not in the BentoML store: import it with `bentoml models import FILE`"
        ) from None
