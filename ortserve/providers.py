"""What ONNX Runtime is given for an execution of a profile: session options, providers with their options, libraries."""

from __future__ import annotations

import onnxruntime as ort

from ortserve import cudart, tensorrt
from ortserve.cpus import adds_int8_exactly, available_cpus
from ortserve.errors import ProviderError
from ortserve.execution import GPU_PROVIDERS, Execution

Option = str | int | float | bool

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
_PACKAGES = {
    "TensorrtExecutionProvider": "onnxruntime-gpu and TensorRT 10",
    "CUDAExecutionProvider": "onnxruntime-gpu[cuda,cudnn]",
    "OpenVINOExecutionProvider": "onnxruntime-openvino in an environment of its own",
    "CPUExecutionProvider": "onnxruntime",
}


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
    spins = wanted.allow_spinning and _bounds_spinning()
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if spins else "0")
        options.add_session_config_entry(f"session.{pool}.spin_duration_us", str(wanted.spin_duration_us))
    options.add_session_config_entry("session.force_spinning_stop", "1")  # never between runs: the CPU is decoding's then
    if not adds_int8_exactly():
        # Other kernels for int8 weights past seven bits, which a model that came as ONNX may have: of unsigned bytes, slower, and right.
        # With VNNI they would halve the speed for the same answers.
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _bounds_spinning() -> bool:
    """Whether this ONNX Runtime knows `spin_duration_us`: one that does not (OpenVINO's build is older) would spin on and on."""
    return tuple(int(part) for part in ort.__version__.split(".")[:2]) >= (1, 31)


def providers(execution: Execution) -> list[tuple[str, dict[str, str]]]:
    """The providers of a session, the first one the execution's own; ONNX Runtime puts the CPU behind them by itself.

    Behind TensorRT stands CUDA on the same device, for the nodes that TensorRT does not know.
    """
    options = {key: _option(execution.provider, value) for key, value in execution.provider_options.items()}
    if execution.cuda_graphs != "off":
        options["enable_cuda_graph"] = "1"
    chosen: list[tuple[str, dict[str, str]]] = [(execution.provider, options)]
    if execution.provider == "TensorrtExecutionProvider":
        shared = {key: value for key, value in options.items() if key in ("device_id", "user_compute_stream")}
        chosen.append(("CUDAExecutionProvider", shared))
    return chosen


def prepare(provider: str) -> None:
    """Load the libraries of a provider. ProviderError where this build of ONNX Runtime does not have it."""
    if provider not in ort.get_available_providers():
        raise ProviderError(
            f"profile asks for {provider}, but this onnxruntime has only {', '.join(ort.get_available_providers())}: "
            f"install {_PACKAGES[provider]}, or choose a profile whose execution names another provider"
        )
    if provider in GPU_PROVIDERS:
        cudart.load_wheels()
        ort.preload_dlls()
    if provider == "TensorrtExecutionProvider":
        tensorrt.load_libraries()


def _option(provider: str, value: Option) -> str:
    """A provider option as ONNX Runtime wants it: text. Booleans are 1 and 0, but TensorRT's True and False: its binding refuses 1."""
    if isinstance(value, bool) and provider != "TensorrtExecutionProvider":
        return str(int(value))
    return str(value)
