"""One ONNX Runtime session: opened on the provider that was asked for or not at all, warmed, and run from any thread.

The same class serves and verifies: what `build_model.py` compared with PyTorch is what answers requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from ortserve import heap, providers
from ortserve.bound import Lanes, Tensors
from ortserve.errors import GraphRefused, ModelError, ProviderError, ShapeMismatch
from ortserve.execution import GPU_PROVIDERS, Execution
from ortserve.manifest import TensorSpec
from ortserve.shared_pool import SharedPool

__all__ = ["Runs", "Session", "Tensors"]

# What a provider that cannot be used raises, by a C++ exception or a status: TensorRT refuses a graph with the latter.
PROVIDER_FAULTS = (RuntimeError, ValueError, state.EPFail, state.EngineError, state.Fail, state.NotImplemented, state.RuntimeException)

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
        on_gpu = self.provider in GPU_PROVIDERS
        # The GPU it runs on, by CUDA's number in this process; None where it runs on none.
        self.device_id: int | None = int(execution.provider_options.get("device_id", 0)) if on_gpu else None
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        # Inputs with a second free dimension: rows of any length, as texts have them.
        self.ragged = frozenset(spec.name for spec in self.inputs if any(isinstance(dim, str) for dim in spec.shape[1:]))
        by_name = {spec.name: spec for spec in self.outputs}
        self._output_names = list(outputs) if outputs is not None else list(by_name)
        if missing := [name for name in self._output_names if name not in by_name]:
            raise ModelError(f"the model has no output {missing[0]!r}, only {', '.join(by_name)}: build it again")
        self._lanes: Lanes | None = None
        if self.device_id is not None and not self.ragged:  # a lane keeps buffers for each shape, and of ragged ones there is no end
            self._lanes = Lanes(
                session,
                [by_name[name] for name in self._output_names],
                batch=self.inputs[0].shape[0],
                count=execution.batching.max_in_flight,
                device_type="cuda",
                device_id=self.device_id,
                pin_memory=True,
                graphs=execution.cuda_graphs != "off",
            )
        elif execution.cuda_graphs != "off":
            raise GraphRefused("its rows are of any length, and a CUDA graph answers for one shape: set cuda_graphs: off")
        self.intra_op_num_threads: int = session.get_session_options().intra_op_num_threads
        shares = self.provider == "CPUExecutionProvider" and self.intra_op_num_threads > 1
        self._pool = SharedPool(session, self._output_names) if shares else None

    @property
    def cuda_graphs(self) -> int:
        """How many CUDA graphs were captured: one for each batch size it was warmed at, in each lane."""
        return self._lanes.captured if self._lanes else 0

    @classmethod
    def open(cls, path: Path, execution: Execution, *, outputs: Sequence[str] | None = None) -> Session:
        """A session for the ONNX file at `path`, on `execution.provider` or not at all; `outputs` names those `run` answers.

        Raises ProviderError where the provider is not in this build of ONNX Runtime or the session did not take it,
        GraphRefused where the model cannot be captured as the execution asks, ModelError where ONNX Runtime cannot load the file.
        """
        provider = execution.provider
        providers.prepare(provider)
        try:
            # Its own fallback would print, and take the CPU: for a provider without libraries, and for a graph that cannot be captured.
            session = ort.InferenceSession(
                str(path), providers.session_options(execution), providers=providers.providers(execution), enable_fallback=0
            )
        except Exception as error:  # the binding raises a family of types that share no base
            said = " ".join(str(error).split())
            if execution.cuda_graphs != "off" and "graph capture feature" in said:
                raise GraphRefused(f"ONNX Runtime cannot capture {path.name} ({said}): set cuda_graphs: off") from error
            if provider != "CPUExecutionProvider" and isinstance(error, PROVIDER_FAULTS):
                raise ProviderError(
                    f"profile asks for {provider}, which cannot be used ({said}): mend that, or choose a profile that names another"
                ) from error
            raise ModelError(f"ONNX Runtime cannot load {path.name} on {provider}: {said}") from error
        heap.give_back()  # what reading the model took
        session.disable_fallback()
        if (active := session.get_providers()[0]) != provider:
            raise ProviderError(
                f"profile asks for {provider}, but the session runs on {active}: no usable device or its libraries are missing, "
                f"as onnxruntime wrote above; mend that, or choose a profile whose execution names {active}"
            )
        return cls(session, execution, outputs)

    def run(self, inputs: Tensors) -> Tensors:
        """Answer `{name: [rows, ...]}` for `{name: [rows, ...]}`, rows in order.

        Raises ShapeMismatch where a tensor is missing or not of the model's shape and dtype. Thread-safe: on a GPU each call has a lane
        of its own while it runs, with its page-locked staging and device buffers.
        """
        self._check(inputs)
        if self._lanes:
            return self._lanes.run(inputs)
        answer = self._pool.run(inputs) if self._pool is not None else self._session.run(self._output_names, inputs)
        return dict(zip(self._output_names, answer, strict=True))

    def warm_up(self, batch_sizes: Iterable[int], lengths: Iterable[int] = (1,)) -> None:
        """Run once at each batch size, so that arenas, kernels, plans and graphs exist before the first request.

        Where rows are ragged, at each of the `lengths` too; on a GPU in every lane. Before any other `run`, since a CUDA graph is
        captured alone. Raises GraphRefused where that fails.
        """
        if self._lanes:
            self._lanes.warm_up([{spec.name: _anything(spec, rows) for spec in self.inputs} for rows in batch_sizes])
            return
        for rows in batch_sizes:
            for length in lengths if self.ragged else (1,):
                self.run({spec.name: np.zeros(spec.concrete(rows, length), dtype=spec.dtype) for spec in self.inputs})

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


def _spec(node: ort.NodeArg) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ModelError(f"tensor {node.name!r} has the type {node.type}, expected one of {', '.join(_DTYPES)}: build the model again")
    return TensorSpec(
        name=node.name, dtype=_DTYPES[node.type], shape=tuple(dim if isinstance(dim, int) else str(dim) for dim in node.shape)
    )


def _anything(spec: TensorSpec, rows: int) -> NDArray[Any]:
    """Rows that differ, so that a graph's answers tell whether it computed; integers are 0 or 1, which any index takes, but pixels."""
    numbers = np.random.default_rng(0).integers(0, 256 if spec.dtype == "uint8" else 2, spec.concrete(rows))
    return numbers.astype(spec.dtype)


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype}[{','.join('N' if isinstance(dim, str) else str(dim) for dim in spec.shape)}]"
