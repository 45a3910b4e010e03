"""The BentoML services: the one that callers ask, and the runners that hold the models for it where the profile's placement is separate.

`placement: in_process`: the runners are left out, every worker has the sessions and the batchers. `placement: separate`: the workers decode
and answer, a runner process holds sessions and batchers; one for all models, or those that the profile names. It is of the same
`bentoml serve`, or one by itself that BentoML's runner map names.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import bentoml
import orjson
from bentoml._internal.configuration.containers import BentoMLContainer

from ortserve import openapi, readiness, startup
from ortserve.bento import PackagedService
from ortserve.errors import NotFound, ProfileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bentoml.models import BentoModel

    from ortserve.bento import Package
    from ortserve.choice import Choice
    from ortserve.edge import App, Route
    from ortserve.engine import Engine
    from ortserve.liveness import Liveness
    from ortserve.local_engine import LocalEngine
    from ortserve.model import ServedModel
    from ortserve.profile import Profile
    from ortserve.readiness import Readiness
    from ortserve.streams import Streams

logger = logging.getLogger("ortserve.services")

_A_SOCKET = "bentoml-uds-12345678/140000000000000.sock"  # as BentoML names it in the temporary folder
RUNNER = "model_runner"  # its name in BentoML's runner map, and for `bentoml start-http-server --service-name`; _NAME behind it where named


def runner_name(name: str) -> str:
    """The BentoML service's name of the runner that the profile calls so."""
    return f"{RUNNER}_{name}" if name else RUNNER


def runners(profile: Profile, models: list[BentoModel]) -> list[OrtRunner]:
    """A runner for each that the profile names for one of these models; one where it names none."""
    names = sorted({profile.runner_of(model.tag.name) for model in models})
    return [_runner(profile, models, name) for name in names]


def _runner(profile: Profile, models: list[BentoModel], name: str) -> OrtRunner:
    inner = type("ModelRunner", (), {"profile": profile, "models": models, "__doc__": OrtRunner.__doc__})
    service = bentoml.service(name=runner_name(name), service_class=OrtRunner, workers=1, resources=startup.resources(profile))(inner)
    return cast(OrtRunner, service)


class OrtService(PackagedService):
    """The service that callers ask: the tasks' endpoints, and the engines here or in the runners, `inner.runners`."""

    apis: dict[str, Any]  # BentoML's own: its typed methods by name

    def __attrs_post_init__(self) -> None:
        """Depend on the runners."""
        for runner in self.inner.runners:
            setattr(self.inner, runner.name, bentoml.depends(runner))
        super().__attrs_post_init__()

    @property
    def worker_count(self) -> int:
        """As many as the profile says."""
        return self.profile.worker_count

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
        """This one and the runners. Those to start (`exclude_urls`) hold runners only where the profile places them apart."""
        services: dict[str, Any] = super().all_services(exclude_urls)
        return {self.name: self} if exclude_urls and self.profile.placement == "in_process" else services

    @cached_property
    def engines(self) -> Mapping[str, Engine]:
        """In this process, or in the runners: then this comes back once they are warm. Raises StartupError."""
        if self.profile.placement == "in_process":
            return self.open_engines()
        self.metrics.started()
        return {name: self._reach_runner(package) for name, package in self.packages.items()}

    def _reach_runner(self, package: Package) -> Engine:
        from ortserve.remote_engine import RemoteEngine
        from ortserve.runner_stream import Address

        model = package.manifest.name
        runner = runner_name(self.profile.runner_of(model))
        address = BentoMLContainer.remote_runner_mapping.get().get(runner)
        if address is None:
            raise ProfileError(
                f"profile {self.profile.name} has placement: separate, but there is no {runner}: expected `bentoml serve`, which starts "
                f"one, or `bentoml start-http-server --depends {runner}=http://HOST:PORT`"
            )
        engine = RemoteEngine(Address.parse(address, model), _identity(package))
        folder = readiness.run_folder()
        if not asyncio.run(engine.wait_for_runner(lambda: not readiness.parent_lives(folder))):
            raise SystemExit(1)  # nobody is left who would want it
        return engine

    @cached_property
    def served(self) -> Mapping[str, ServedModel]:
        """The models as this worker serves them, by name. Raises StartupError."""
        from ortserve import jpeg, resample
        from ortserve.model import ServedModel

        if any(package.manifest.preprocessing for package in self.packages.values()):
            jpeg.way()  # says in the log which it is, and is opened before a picture comes
            resample.way()  # as above
        return {
            name: ServedModel(
                manifest=package.manifest,
                version=package.version,
                task=package.task,
                engine=self.engines[name],
                profile=package.profile,
                observer=self.metrics.for_model(name),
            )
            for name, package in self.packages.items()
        }

    @cached_property
    def choices(self) -> Mapping[str, Choice]:
        """Which of them answer which path."""
        from ortserve.choice import choices

        return choices(self.served.values())

    async def call(self, path: str, **fields: Any) -> Any:
        """What the endpoint answers to these fields, for APIs in this process; HTTP requests take the edge's way.

        Raises what that would be answered with. An API that lets it through is answered with it, not with BentoML's 500.
        """
        from ortserve import edge, replies, requests, routes

        with edge.telling():
            if path not in self.choices:
                raise NotFound(f"no model served here answers {path}, only {', '.join(self.choices)}: serve one of its task")
            choice = self.choices[path]
            asked = await asyncio.to_thread(requests.from_fields, choice.takes, fields)
            value, _ = await routes.respond(choice, asked)
        return orjson.loads(replies.to_json(value))

    def routes(self, ready: Readiness, lives: Liveness) -> list[Route]:
        """The tasks' endpoints, the models' facts, health and metrics."""
        from ortserve import routes

        # Those of ModelService are of every task, and these models have some; what a class under it adds is its own.
        [declared] = [kind for kind in self.inner.__mro__ if "runners" in vars(kind)]
        self.apis = {name: api for name, api in self.apis.items() if name not in vars(declared) or api.route in self.choices}
        return routes.build(self.served, self.choices, self.profile, ready, lives, self.metrics)

    def leave(self) -> None:
        """Where the runner ends too, this worker's rows still go to it."""
        for engine in self.engines.values():
            engine.stay()

    async def close(self) -> None:
        """Answer what was admitted, then end the threads."""
        await asyncio.gather(*(served.close() for served in self.served.values()))

    @property
    def openapi_spec(self) -> Any:
        """BentoML's OpenAPI document, completed with what our edge adds: GET paths, raw bodies, query parameters, errors."""
        version = (self.bento.tag.version if self.bento else None) or "checkout"
        description = inspect.getdoc(self.inner) or ""
        return openapi.complete(super().openapi_spec, description, version, metrics=self.profile.metrics.port is None)


class OrtRunner(PackagedService):
    """Sessions and batchers in a process of their own, which answers API workers over streams; where placement is separate."""

    def holds(self, name: str) -> bool:
        """Those that the profile gives to this runner."""
        return bool(runner_name(self.profile.runner_of(name)) == self.name)

    @property
    def worker_count(self) -> int:
        """One."""
        return 1

    def begin(self) -> None:
        """As every service; by itself only where the profile places it apart, or its machine and the others' would not fit together."""
        if self.profile.placement != "separate":
            raise SystemExit(
                f"error: profile {self.profile.name} has placement: {self.profile.placement}, expected separate to serve {self.name}: "
                "choose such a profile, or serve model_service"
            )
        super().begin()

    @cached_property
    def engines(self) -> Mapping[str, LocalEngine]:
        """In this process. Raises StartupError."""
        return self.open_engines()

    def routes(self, ready: Readiness, lives: Liveness) -> list[Route]:
        """Health and metrics."""
        from ortserve import routes

        return routes.health(self.profile, ready, lives, self.metrics, self.engines.values())

    def in_front(self, edge: App) -> Streams:
        """The streams, and the edge for everything else."""
        from ortserve.streams import Streams

        facts = {name: {**_identity(self.packages[name]), "engine": engine.facts()} for name, engine in self.engines.items()}
        self._streams = Streams(edge, self.engines, facts)
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
