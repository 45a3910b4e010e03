"""A profile: one YAML file that decides how the service runs. The code never asks for a profile's name.

Parsed once, frozen, unknown keys refused; the unit is in every name. `load("default")` takes a shipped profile,
`load("path/to/mine.yaml")` a file. What each value is for is written beside it in `profiles/*.yaml`.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ortserve.errors import ProfileError
from ortserve.manifest import Precision

SHIPPED = Path(__file__).resolve().parent.parent / "profiles"

Provider = Literal["TensorrtExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"]
GPU_PROVIDERS: frozenset[str] = frozenset({"TensorrtExecutionProvider", "CUDAExecutionProvider"})
# Options of TensorRT that `tensorrt.py` writes; by hand they would fit one model and one batching.
MADE_FROM_THE_MODEL: frozenset[str] = frozenset(
    {
        *("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"),
        *("trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path"),
    }
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Session(_Section):
    """ONNX Runtime session options, by ONNX Runtime's own names."""

    intra_op_num_threads: int | Literal["auto"] = (
        "auto"  # "auto": the CPUs this process may use (cgroup quota and affinity); 1 for a brief model
    )
    inter_op_num_threads: int = Field(default=1, ge=1)
    execution_mode: Literal["sequential", "parallel"] = "sequential"
    graph_optimization_level: Literal["disabled", "basic", "extended", "all"] = "all"
    allow_spinning: bool = True
    spin_duration_us: int = Field(
        default=50, ge=0, le=1_000_000
    )  # a thread without work looks for some this long, within a run, then sleeps
    enable_cpu_mem_arena: bool = True
    enable_mem_pattern: bool = True

    @field_validator("intra_op_num_threads")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected 1 or more, or auto")
        return value


class Batching(_Section):
    """How requests become batches. All sizes count rows (pictures, texts), not requests."""

    max_batch_size: int = Field(default=8, ge=1)
    max_queue_delay_ms: float = Field(default=0.0, ge=0.0, le=1000.0)
    max_in_flight: int = Field(default=1, ge=1, le=64)
    max_queue_size: int = Field(default=256, ge=1)
    buckets: tuple[int, ...] = ()  # batch sizes the session is given; smaller batches are padded. Empty: any size
    # Tokens: texts up to the same bound share a batch. Rising by half at most, so that little of one is padding.
    sequence_buckets: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    max_batch_tokens: int | None = Field(default=None, ge=1)  # rows times the bound of their length; None: rows alone decide

    @model_validator(mode="after")
    def _consistent(self) -> Batching:
        if list(self.buckets) != sorted(set(self.buckets)) or any(size < 1 for size in self.buckets):
            raise ValueError(f"buckets: expected rising sizes of 1 or more, got {list(self.buckets)}")
        if list(self.sequence_buckets) != sorted(set(self.sequence_buckets)) or any(bound < 1 for bound in self.sequence_buckets):
            raise ValueError(f"sequence_buckets: expected rising lengths of 1 or more, got {list(self.sequence_buckets)}")
        if self.buckets and self.buckets[-1] != self.max_batch_size:
            raise ValueError(f"buckets: the last one must be max_batch_size ({self.max_batch_size}), got {self.buckets[-1]}")
        if self.max_queue_size < self.max_batch_size:
            raise ValueError(
                f"max_queue_size ({self.max_queue_size}) must hold at least one batch of max_batch_size ({self.max_batch_size})"
            )
        return self


class Execution(_Section):
    """One way to run the model: a provider with everything that is tuned for it."""

    provider: Provider
    provider_options: dict[str, str | int | float | bool] = {}
    precision: tuple[Precision, ...] = ("fp32",)  # the first one that the model package holds is served
    device_ids: tuple[int, ...] = ()  # GPUs to choose from, each worker the next; (): the one of provider_options.device_id
    # What the model may take of the device's memory, or of the machine's where it runs on the CPU; None: no limit.
    memory_limit_bytes: int | None = Field(default=None, ge=1)
    # One for each size in buckets, captured before ready. auto: where the model can be captured; never for rows of any length
    cuda_graphs: Literal["off", "auto", "required"] = "off"
    session: Session = Session()
    batching: Batching = Batching()
    text_batching: Batching | None = None  # for models whose rows are texts, of any length; None: as `batching`

    @field_validator("precision")
    @classmethod
    def _some(cls, value: tuple[Precision, ...]) -> tuple[Precision, ...]:
        if not value:
            raise ValueError("expected at least one of fp32, fp16, int8")
        return value

    @model_validator(mode="after")
    def _one_device(self) -> Execution:
        if self.device_ids and self.provider not in GPU_PROVIDERS:
            raise ValueError(f"device_ids: {self.provider} has no GPUs to choose from: leave them out")
        if self.device_ids and "device_id" in self.provider_options:
            raise ValueError("device_ids and provider_options.device_id both name the device: give one of them")
        if self.memory_limit_bytes is not None and self.provider == "TensorrtExecutionProvider":
            raise ValueError("memory_limit_bytes: TensorRT keeps to none; limit trt_max_workspace_size in provider_options")
        if self.memory_limit_bytes is not None and "gpu_mem_limit" in self.provider_options:
            raise ValueError("memory_limit_bytes and provider_options.gpu_mem_limit both limit the memory: give one of them")
        return self

    @field_validator("provider_options")
    @classmethod
    def _not_made_here(cls, value: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        if "enable_cuda_graph" in value or "trt_cuda_graph_enable" in value:
            raise ValueError("one CUDA graph answers for one shape alone: expected cuda_graphs: auto, which has one a bucket")
        if made := sorted(value.keys() & MADE_FROM_THE_MODEL):
            raise ValueError(f"{made[0]} is made from the model and its batching: leave it out")
        return value

    @model_validator(mode="after")
    def _graphs_have_buckets(self) -> Execution:
        if self.cuda_graphs == "off":
            return self
        if self.provider != "CUDAExecutionProvider":
            raise ValueError(f"cuda_graphs: expected off for {self.provider}, only CUDAExecutionProvider has them")
        if not self.batching.buckets:
            raise ValueError("cuda_graphs: expected batching.buckets, the batch sizes that have a graph each, or cuda_graphs: off")
        return self


class Images(_Section):
    """How bytes become pixels."""

    decoder: Literal["exact", "draft"] = "exact"
    decode_threads: int | Literal["auto"] = "auto"


class ModelLimits(_Section):
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


class Objectives(_Section):
    """What the alerts measure the service by. It changes nothing in how the service runs."""

    p99_ms: Annotated[float, Field(gt=0.0)] | Literal["auto"] = "auto"  # "auto": a quarter of request_timeout_ms


class Logging(_Section):
    """What is written to standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = False


class MetricsPort(_Section):
    """Where `/metrics` is answered."""

    port: int | None = Field(default=None, ge=1, le=65535)  # None: on the service's own port
    host: str = "0.0.0.0"  # an IP address; counts only with a port

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        ipaddress.ip_address(value)
        return value


class Stopping(_Section):
    """How the service ends when it is told to."""

    drain_delay_ms: float = Field(default=5_000.0, ge=0.0, le=300_000.0)  # after SIGTERM; Ctrl-C does not wait


class Tracing(_Section):
    """OpenTelemetry spans over OTLP; the exporter is set by the standard OTEL_* variables."""

    enabled: bool = False
    sample_rate: float = Field(default=0.1, ge=0.0, le=1.0)


class Served(_Section):
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


class Profile(_Section):
    """Everything that one way of running decides."""

    name: str = ""  # set by load(): the shipped name or the file's stem; shown, never branched on
    description: str
    placement: Literal["in_process", "separate"] = "in_process"
    workers: int = Field(default=1, ge=1, le=256)  # API processes; placement separate has one more, the runner
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


def shipped_names() -> tuple[str, ...]:
    """Names of the profiles that come with the project."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load(reference: str) -> Profile:
    """The profile of that shipped name, or of that file (anything with a slash or ending in .yaml or .yml).

    Raises ProfileError where it cannot be found, read or believed; the message names the file, the key and the nearest valid one.
    """
    is_file = "/" in reference or reference.endswith((".yaml", ".yml"))
    path = Path(reference).expanduser() if is_file else SHIPPED / f"{reference}.yaml"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if is_file and not path.is_absolute():  # BentoML has changed to the service's folder, wherever the command was given
            raise ProfileError(f"profile {reference!r} not found in {Path.cwd()}, the service's folder: give its absolute path") from None
        raise ProfileError(
            f"profile {reference!r} not found: expected one of {', '.join(shipped_names())}, or the path of a .yaml file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {reference!r} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ProfileError(f"profile {path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ProfileError(f"profile {path.name}: expected a mapping of keys to values, got {type(data).__name__}")
    try:
        return Profile.model_validate({**data, "name": path.stem} if "name" not in data else data)
    except ValidationError as error:
        raise ProfileError(f"profile {path.name}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first fault of a profile in one line: the key, what is wrong, and the nearest valid key where one was mistyped."""
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])  # a mistyped key is also one that is missing
    location = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        section = _section_at(fault["loc"][:-1])
        known = sorted(section.model_fields)
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        return f"unknown key {location!r}: {hint}"
    if fault["type"] == "missing":
        return f"key {location!r} is missing"
    return f"{location}: {fault['msg']}, got {fault['input']!r}" if location else str(fault["msg"])


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    """The section class a location inside a profile belongs to."""
    section: type[BaseModel] = Profile
    for part in location:
        if isinstance(part, int):
            continue
        annotation: Any = section.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel))
    return section
