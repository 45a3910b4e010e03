"""What ONNX Runtime is given: session options and provider options, as text, from a profile's execution."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort
import pytest

from ortserve import cpus
from ortserve import providers as providers_module
from ortserve.execution import Execution
from ortserve.providers import providers, session_options

CPU = Execution(provider="CPUExecutionProvider")


def execution(provider: str, **keys: Any) -> Execution:
    return Execution.model_validate({"provider": provider, **keys})


def test_options_come_from_the_profile() -> None:
    options = session_options(
        execution(
            "CPUExecutionProvider",
            session={
                "intra_op_num_threads": 3,
                "inter_op_num_threads": 2,
                "execution_mode": "parallel",
                "graph_optimization_level": "basic",
                "allow_spinning": True,
                "spin_duration_us": 70,
                "enable_cpu_mem_arena": False,
                "enable_mem_pattern": False,
            },
        )
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "70"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"  # never between two runs
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern


@pytest.mark.parametrize(("version", "spins"), [("1.24.1", "0"), ("1.31.0", "1"), ("2.0.0", "1")])
def test_no_thread_spins_in_an_onnxruntime_that_knows_no_end_of_it(version: str, spins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    assert session_options(CPU).get_session_config_entry("session.intra_op.allow_spinning") == spins


def test_auto_threads_are_the_cpus_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session_options(CPU).intra_op_num_threads == cpus.available_cpus()
    monkeypatch.setattr(providers_module, "available_cpus", lambda: 7)
    assert session_options(CPU).intra_op_num_threads == 7


def test_int8_is_multiplied_another_way_only_where_it_would_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers_module, "adds_int8_exactly", lambda: False)
    assert session_options(CPU).get_session_config_entry("session.x64quantprecision") == "1"
    monkeypatch.setattr(providers_module, "adds_int8_exactly", lambda: True)
    with pytest.raises(RuntimeError, match="x64quantprecision"):  # it is not set
        session_options(CPU).get_session_config_entry("session.x64quantprecision")


def test_provider_options_are_text_and_booleans_are_digits() -> None:
    cuda = execution("CUDAExecutionProvider", provider_options={"device_id": 1, "prefer_nhwc": True, "arena_extend_strategy": "kSame"})
    assert providers(cuda) == [("CUDAExecutionProvider", {"device_id": "1", "prefer_nhwc": "1", "arena_extend_strategy": "kSame"})]


@pytest.mark.parametrize("wanted", ["auto", "required"])
def test_graphs_are_asked_for_by_onnxruntimes_own_option(wanted: str) -> None:
    cuda = execution("CUDAExecutionProvider", cuda_graphs=wanted, batching={"max_batch_size": 2, "buckets": [1, 2]})
    assert providers(cuda) == [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]


def test_behind_tensorrt_stands_cuda_on_the_same_device() -> None:
    chosen = providers(execution("TensorrtExecutionProvider", provider_options={"device_id": 3, "trt_fp16_enable": True}))
    assert chosen == [
        ("TensorrtExecutionProvider", {"device_id": "3", "trt_fp16_enable": "True"}),
        ("CUDAExecutionProvider", {"device_id": "3"}),
    ]


def test_the_cpu_has_nothing_behind_it() -> None:
    assert providers(CPU) == [("CPUExecutionProvider", {})]
