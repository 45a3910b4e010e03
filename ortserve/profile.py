"""A profile: one YAML file that decides how the service runs. The code never asks for a profile's name.

Parsed once (`profile_file.py`), frozen, unknown keys refused; the unit is in every name. What each value is for is written beside it in
`profiles/*.yaml`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ortserve.cpus import available_cpus
from ortserve.execution import Execution, Section


class Images(Section):
    """How bytes become pixels."""

    decoder: Literal["exact", "draft"] = "exact"
    decode_threads: int | Literal["auto"] = "auto"


class ModelLimits(Section):
    """What one caller may cost, of what is checked once it is known which model is asked."""

    max_image_pixels: int = Field(default=40_000_000, ge=1)
    max_text_chars: int = Field(default=32_768, ge=1)
    request_timeout_ms: float = Field(default=10_000.0, gt=0.0)


class Limits(ModelLimits):
    """What one caller may cost. Checked before the cost arises."""

    max_image_bytes: int = Field(default=20 * 1024 * 1024, ge=1)
    max_request_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    max_images_per_request: int = Field(default=64, ge=1)
    max_json_bytes: int = Field(default=2 * 1024 * 1024, ge=1)
    max_texts_per_request: int = Field(default=1024, ge=1)
    body_timeout_ms: float = Field(default=30_000.0, gt=0.0)
    max_buffered_bytes: int = Field(default=512 * 1024 * 1024, ge=1)


class Objectives(Section):
    """What the alerts measure the service by. It changes nothing in how the service runs."""

    p99_ms: Annotated[float, Field(gt=0.0)] | Literal["auto"] = "auto"  # "auto": a quarter of request_timeout_ms


class Logging(Section):
    """What is written to standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = False


class MetricsPort(Section):
    """Where `/metrics` is answered."""

    port: int | None = Field(default=None, ge=1, le=65535)  # None: on the service's own port
    host: str = "0.0.0.0"  # an IP address; counts only with a port

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        ipaddress.ip_address(value)
        return value


class Stopping(Section):
    """How the service ends when it is told to."""

    drain_delay_ms: float = Field(default=5_000.0, ge=0.0, le=300_000.0)  # after SIGTERM; Ctrl-C does not wait


class Tracing(Section):
    """OpenTelemetry spans over OTLP; the exporter is set by the standard OTEL_* variables."""

    enabled: bool = False
    sample_rate: float = Field(default=0.1, ge=0.0, le=1.0)


class Served(Section):
    """One of several models, and how it runs; what it does not say of itself is as the profile has it for all."""

    model: str = Field(min_length=1)  # NAME or NAME:VERSION of the BentoML store
    runner: str = Field(default="", pattern=r"^[a-z0-9_]*$")  # placement separate: models of one name share a runner process
    execution: tuple[Execution, ...] = Field(min_length=1)
    images: Images
    limits: ModelLimits
    objectives: Objectives

    @property
    def name(self) -> str:
        """The model's name, without its version."""
        return self.model.partition(":")[0]


class Profile(Section):
    """Everything that one way of running decides."""

    name: str = ""  # set by profile_file.load: the shipped name or the file's stem; shown, never branched on
    description: str
    placement: Literal["in_process", "separate"] = "in_process"
    # API processes; placement separate has one more, the runner. auto: one for every two CPUs this process may use
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    execution: tuple[Execution, ...] = Field(min_length=1)  # tried in order; the first whose provider the session confirms
    models: tuple[Served, ...] = ()  # served together; (): those that ORTSERVE_MODEL names
    images: Images = Images()
    limits: Limits = Limits()
    objectives: Objectives = Objectives()
    logging: Logging = Logging()
    metrics: MetricsPort = MetricsPort()
    tracing: Tracing = Tracing()
    stopping: Stopping = Stopping()

    @property
    def worker_count(self) -> int:
        """API processes here. With `auto` two CPUs have one: its interpreter has work for one of them, its C threads for the other."""
        return max(1, available_cpus() // 2) if self.workers == "auto" else self.workers

    @property
    def p99_target_ms(self) -> float:
        """What 99 of 100 answers are to be ready within."""
        wanted = self.objectives.p99_ms
        return self.limits.request_timeout_ms / 4 if wanted == "auto" else wanted

    def for_model(self, name: str) -> Profile:
        """As the model of that name runs."""
        for served in self.models:
            if served.name == name:
                own = {"execution": served.execution, "images": served.images, "objectives": served.objectives}
                return self.model_copy(update=own | {"limits": self.limits.model_copy(update=served.limits.model_dump())})
        return self

    def runner_of(self, name: str) -> str:
        """The name of the runner process that holds the model of that name, "" for the one that needs none."""
        return next((served.runner for served in self.models if served.name == name), "")

    @model_validator(mode="before")
    @classmethod
    def _inherited(cls, data: Any) -> Any:
        """Each model's sections over the profile's own."""
        if not isinstance(data, Mapping) or not isinstance(models := data.get("models"), list | tuple):
            return data
        return {**data, "models": [_over(data, model) if isinstance(model, Mapping) else model for model in models]}

    @model_validator(mode="after")
    def _each_model_once(self) -> Profile:
        names = [served.name for served in self.models]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"models: {twice} is there twice: requests choose a model by its name, so one version of each can be served")
        for served in self.models:
            if served.runner and self.placement != "separate":
                raise ValueError(f"models: {served.name} has a runner, which placement: {self.placement} has none of: leave it out")
        return self

    @model_validator(mode="after")
    def _target_can_be_missed(self) -> Profile:
        for whose, one in (("", self), *((f"models: {served.name}: ", self.for_model(served.name)) for served in self.models)):
            if one.p99_target_ms >= one.limits.request_timeout_ms:
                raise ValueError(
                    f"{whose}objectives.p99_ms ({one.p99_target_ms:g}) must be below limits.request_timeout_ms "
                    f"({one.limits.request_timeout_ms:g}): what would take longer is dropped unanswered, so that a later answer never "
                    "comes and the alert never would"
                )
        return self


def _over(profile: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of a model, laid over what the profile says for all of them."""
    merged: dict[str, Any] = {"execution": profile.get("execution", ()), **model}
    for section, known in (("images", Images), ("limits", ModelLimits), ("objectives", Objectives)):
        common = profile.get(section, {})
        own = model.get(section, {})
        if isinstance(common, Mapping) and isinstance(own, Mapping):
            merged[section] = {key: value for key, value in common.items() if key in known.model_fields} | dict(own)
    return merged
