"""One ONNX Runtime session: opened on the provider that was asked for or not at all, warmed, and run from any thread.

The same class serves and verifies: what `build_model.py` compared with PyTorch is what answers requests.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ortserve.cpus import available_cpus
from ortserve.errors import ModelError, ProviderError, ShapeMismatch
from ortserve.manifest import TensorSpec
from ortserve.profile import GPU_PROVIDERS, Execution

Tensors = dict[str, NDArray[Any]]

_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}
_OPTIMIZATION = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_EXECUTION_MODE = {
    "sequential": ort.ExecutionMode.ORT_SEQUENTIAL,
    "parallel": ort.ExecutionMode.ORT_PARALLEL,
}


class Runs(Protocol):
    """Anything that turns tensors into tensors, row by row: a `Session`, or a five-line fake in a test."""

    def run(self, inputs: Tensors) -> Tensors:
        """`{name: [rows, ...]}` to `{name: [rows, ...]}`, in order; called from several threads at once."""
        ...


class Session:
    """An open ONNX Runtime session on a confirmed provider. `run` may be called from several threads at once."""

    def __init__(self, session: ort.InferenceSession, execution: Execution, outputs: Sequence[str] | None) -> None:
        self._session = session
        self.provider: str = session.get_providers()[0]
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        # Inputs with a second free dimension: rows of any length, as texts have them.
        self.ragged = frozenset(spec.name for spec in self.inputs if any(isinstance(dim, str) for dim in spec.shape[1:]))
        known = [spec.name for spec in self.outputs]
        self._output_names = list(outputs) if outputs is not None else known
        if missing := [name for name in self._output_names if name not in known]:
            raise ModelError(f"the model has no output {missing[0]!r}, only {', '.join(known)}: build it again")
        self._on_gpu = self.provider in GPU_PROVIDERS
        self._device_id = int(execution.provider_options.get("device_id", 0))
        self._bound = threading.local()

    @classmethod
    def open(cls, path: Path, execution: Execution, *, outputs: Sequence[str] | None = None) -> Session:
        """A session for the ONNX file at `path`, on `execution.provider` or not at all; `outputs` names those `run` answers.

        Raises ProviderError where the provider is not in this build of ONNX Runtime or the session did not take it,
        ModelError where ONNX Runtime cannot load the file.
        """
        provider = execution.provider
        if provider not in ort.get_available_providers():
            raise ProviderError(
                f"profile asks for {provider}, but this onnxruntime has only {', '.join(ort.get_available_providers())}: "
                f"install {_PACKAGES[provider]}, or choose a profile whose execution names another provider"
            )
        if provider in GPU_PROVIDERS:
            ort.preload_dlls()
        try:
            session = ort.InferenceSession(
                str(path),
                session_options(execution),
                providers=[(provider, {key: _option(value) for key, value in execution.provider_options.items()})],
            )
        except Exception as error:  # the binding raises a family of types that share no base
            raise ModelError(f"ONNX Runtime cannot load {path.name} on {provider}: {' '.join(str(error).split())}") from error
        session.disable_fallback()
        if (active := session.get_providers()[0]) != provider:
            raise ProviderError(
                f"profile asks for {provider}, but the session runs on {active}: no usable device or its libraries are missing, "
                f"as onnxruntime wrote above; mend that, or choose a profile whose execution names {active}"
            )
        return cls(session, execution, outputs)

    def run(self, inputs: Tensors) -> Tensors:
        """Answer `{name: [rows, ...]}` for `{name: [rows, ...]}`, rows in order.

        Raises ShapeMismatch where a tensor is missing or not of the model's shape and dtype. Thread-safe: on a GPU each calling
        thread has its own IO binding and page-locked staging buffer.
        """
        self._check(inputs)
        if self._on_gpu and not self.ragged:  # a binding keeps buffers for each shape, and there is no end of those
            return self._binding().run(inputs)
        return dict(zip(self._output_names, self._session.run(self._output_names, inputs), strict=True))

    def warm_up(self, batch_sizes: Iterable[int], lengths: Iterable[int] = (1,)) -> None:
        """Run once at each batch size with zeros, so that arenas, kernels and plans exist before the first request.

        Where rows are ragged, at each of the `lengths` too.
        """
        for rows in batch_sizes:
            for length in lengths if self.ragged else (1,):
                self.run({spec.name: np.zeros(_concrete(spec.shape, rows, length), dtype=spec.dtype) for spec in self.inputs})

    def nodes_by_provider(self) -> dict[str, int]:
        """How many graph nodes each provider took, as the session recorded it. Empty where this build cannot tell."""
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return {}
        counts: Counter[str] = Counter()
        for subgraph in self._session.get_provider_graph_assignment_info():
            counts[subgraph.ep_name] += len(subgraph.get_nodes())
        return dict(counts)

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        rows: int | None = None
        for spec in self.inputs:
            tensor = inputs.get(spec.name)
            if tensor is None:
                raise ShapeMismatch(f"expected a tensor {spec.name!r} of {_text(spec)}, got none: send every input of the model")
            fits = tensor.dtype == spec.dtype and tensor.ndim == len(spec.shape)
            fits = fits and all(isinstance(want, str) or want == have for want, have in zip(spec.shape, tensor.shape, strict=True))
            if not fits or tensor.shape[0] == 0 or (rows is not None and tensor.shape[0] != rows):
                have = f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]"
                raise ShapeMismatch(f"expected {spec.name!r} as {_text(spec)} with the same rows in every input, got {have}")
            rows = tensor.shape[0]

    def _binding(self) -> BoundRunner:
        bound: BoundRunner | None = getattr(self._bound, "runner", None)
        if bound is None:
            bound = self._bound.runner = BoundRunner(self._session, self._output_names, "cuda", self._device_id, pin_memory=True)
        return bound


class BoundRunner:
    """Runs with IO binding: inputs staged in page-locked memory, copied to fixed device buffers; answers copied back once.

    Belongs to one thread. Keeps one set of buffers for each input shape it has seen, so that a profile with `buckets` settles on a
    few fixed addresses. `device_type` "cpu" runs the same path without a GPU.
    """

    def __init__(
        self, session: ort.InferenceSession, outputs: Sequence[str], device_type: str, device_id: int, *, pin_memory: bool
    ) -> None:
        self._session = session
        self._outputs = list(outputs)
        self._device_type = device_type
        self._device_id = device_id
        self._pin_memory = pin_memory
        self._buffers: dict[tuple[tuple[int, ...], ...], tuple[Tensors, dict[str, ort.OrtValue], ort.IOBinding]] = {}

    def run(self, inputs: Tensors) -> Tensors:
        """As `Session.run`."""
        key = tuple(tensor.shape for tensor in inputs.values())
        if key not in self._buffers:
            self._buffers[key] = self._allocate(inputs)
        staging, device, binding = self._buffers[key]
        for name, tensor in inputs.items():
            np.copyto(staging[name], tensor)
            device[name].update_inplace(staging[name])
        self._session.run_with_iobinding(binding)
        return dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))

    def _allocate(self, inputs: Tensors) -> tuple[Tensors, dict[str, ort.OrtValue], ort.IOBinding]:
        staging = {name: np.empty_like(tensor, order="C") for name, tensor in inputs.items()}
        if self._pin_memory:
            for buffer in staging.values():
                pin(buffer)
        binding = self._session.io_binding()
        device: dict[str, ort.OrtValue] = {}
        for name, tensor in inputs.items():
            device[name] = ort.OrtValue.ortvalue_from_shape_and_type(tensor.shape, tensor.dtype, self._device_type, self._device_id)
            binding.bind_ortvalue_input(name, device[name])
        for name in self._outputs:
            binding.bind_output(name, self._device_type, self._device_id)
        return staging, device, binding


def pin(buffer: NDArray[Any]) -> bool:
    """Page-lock a host buffer with `cudaHostRegister`, so that copies to the GPU need no second staging; True where that worked.

    A refusal (limits on locked memory) costs speed, not correctness, so it is reported to the caller and not raised.
    """
    import ctypes

    for name in ("libcudart.so.13", "libcudart.so.12", "libcudart.so"):
        try:
            runtime = ctypes.CDLL(name)
        except OSError:
            continue
        status: int = runtime.cudaHostRegister(ctypes.c_void_p(buffer.ctypes.data), ctypes.c_size_t(buffer.nbytes), ctypes.c_uint(0))
        return status == 0
    return False


def session_options(execution: Execution) -> ort.SessionOptions:
    """ONNX Runtime's session options for one execution of a profile."""
    wanted = execution.session
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cpus() if wanted.intra_op_num_threads == "auto" else wanted.intra_op_num_threads
    options.inter_op_num_threads = wanted.inter_op_num_threads
    options.execution_mode = _EXECUTION_MODE[wanted.execution_mode]
    options.graph_optimization_level = _OPTIMIZATION[wanted.graph_optimization_level]
    options.enable_cpu_mem_arena = wanted.enable_cpu_mem_arena
    options.enable_mem_pattern = wanted.enable_mem_pattern
    spinning = "1" if wanted.allow_spinning else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", spinning)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


_PACKAGES = {
    "TensorrtExecutionProvider": "onnxruntime-gpu and TensorRT 10",
    "CUDAExecutionProvider": "onnxruntime-gpu[cuda,cudnn]",
    "OpenVINOExecutionProvider": "onnxruntime-openvino in an environment of its own",
    "CPUExecutionProvider": "onnxruntime",
}


def _option(value: str | int | float | bool) -> str:
    """A provider option as ONNX Runtime wants it: text, with booleans as 1 and 0."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _spec(node: ort.NodeArg) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ModelError(f"tensor {node.name!r} has the type {node.type}, expected one of {', '.join(_DTYPES)}: build the model again")
    return TensorSpec(
        name=node.name, dtype=_DTYPES[node.type], shape=tuple(dim if isinstance(dim, int) else str(dim) for dim in node.shape)
    )


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{','.join('N' if isinstance(dim, str) else str(dim) for dim in spec.shape)}]"


def _concrete(shape: tuple[int | str, ...], rows: int, length: int) -> tuple[int, ...]:
    """A shape with its first free dimension set to `rows` and any other to `length`."""
    return (rows, *(dim if isinstance(dim, int) else length for dim in shape[1:]))
