"""How a model runs: the part of a profile that names a provider and everything that is tuned for it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ortserve.manifest import Precision

Provider = Literal["TensorrtExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"]
GPU_PROVIDERS: frozenset[str] = frozenset({"TensorrtExecutionProvider", "CUDAExecutionProvider"})
# Options of TensorRT that `tensorrt.py` writes; by hand they would fit one model and one batching.
MADE_FROM_THE_MODEL: frozenset[str] = frozenset(
    {
        *("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"),
        *("trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path"),
    }
)


class Section(BaseModel):
    """Of a profile: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Session(Section):
    """ONNX Runtime session options, by ONNX Runtime's own names."""

    # "auto": the CPUs this process may use (cgroup quota and affinity), or one for a model that is brief
    intra_op_num_threads: int | Literal["auto"] = "auto"
    inter_op_num_threads: int = Field(default=1, ge=1)
    execution_mode: Literal["sequential", "parallel"] = "sequential"
    graph_optimization_level: Literal["disabled", "basic", "extended", "all"] = "all"
    allow_spinning: bool = True
    # A thread without work looks for some this long within a run, and sleeps then; between two runs it sleeps at once.
    spin_duration_us: int = Field(default=20, ge=0, le=1_000_000)
    enable_cpu_mem_arena: bool = True
    enable_mem_pattern: bool = True

    @field_validator("intra_op_num_threads")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("expected 1 or more, or auto")
        return value


class Batching(Section):
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


class Execution(Section):
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
    brief_batching: Batching | None = None  # for others of whose rows a CPU computes one in under a millisecond; None: as `batching`

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
    def _brief_on_a_cpu(self) -> Execution:
        if self.brief_batching is not None and self.provider in GPU_PROVIDERS:
            raise ValueError(f"brief_batching: {self.provider} does not compute on a CPU: leave it out")
        return self

    @model_validator(mode="after")
    def _graphs_have_buckets(self) -> Execution:
        if self.cuda_graphs == "off":
            return self
        if self.provider != "CUDAExecutionProvider":
            raise ValueError(f"cuda_graphs: expected off for {self.provider}, only CUDAExecutionProvider has them")
        if not self.batching.buckets:
            raise ValueError("cuda_graphs: expected batching.buckets, the batch sizes that have a graph each, or cuda_graphs: off")
        return self
