"""The session on real, tiny ONNX files: what it refuses to open, what it refuses to run, and that threads do not mix rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ortserve import providers
from ortserve.errors import GraphRefused, ModelError, ProviderError, ShapeMismatch
from ortserve.execution import Execution
from ortserve.session import PROVIDER_FAULTS, Session
from ortserve.v2.datatypes import DTYPES
from tests.devices import why_no_gpu

CPU = Execution(provider="CPUExecutionProvider")


def write_model(path: Path, *, element: int = TensorProto.UINT8) -> Path:
    """An ONNX file: `pixels` uint8[batch, 2, 2] -> `doubled` float32[batch, 2, 2] and `plus_one` of the same shape."""
    shape = ["batch", 2, 2]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["floats", "floats"], ["doubled"]),
        helper.make_node("Add", ["floats", "one"], ["plus_one"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", element, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("doubled", "plus_one")],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.onnx")


def pixels(rows: int, first: int = 0) -> NDArray[Any]:
    """uint8[rows, 2, 2] whose every element of row i is first + i."""
    return np.repeat(np.arange(first, first + rows, dtype=np.uint8), 4).reshape(rows, 2, 2)


def test_open_confirms_the_provider_and_reads_the_tensors(model: Path) -> None:
    session = Session.open(model, CPU)
    assert session.provider == "CPUExecutionProvider"
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [("pixels", "uint8", ("batch", 2, 2))]
    assert [spec.name for spec in session.outputs] == ["doubled", "plus_one"]


def test_run_answers_every_row_in_its_place(model: Path) -> None:
    answer = Session.open(model, CPU).run({"pixels": pixels(5)})
    np.testing.assert_array_equal(answer["doubled"], pixels(5).astype(np.float32) * 2)
    np.testing.assert_array_equal(answer["plus_one"], pixels(5).astype(np.float32) + 1)


def test_outputs_chooses_what_is_answered(model: Path) -> None:
    assert list(Session.open(model, CPU, outputs=["plus_one"]).run({"pixels": pixels(1)})) == ["plus_one"]


def test_an_output_the_model_lacks_is_named(model: Path) -> None:
    with pytest.raises(ModelError, match=r"no output 'logits', only doubled, plus_one"):
        Session.open(model, CPU, outputs=["logits"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"expected a tensor 'pixels' of uint8\[N,2,2\], got none"),
        ({"pixels": pixels(1).astype(np.float32)}, r"uint8\[N,2,2\].*got float32\[1,2,2\]"),
        ({"pixels": pixels(1)[0]}, r"got uint8\[2,2\]"),
        ({"pixels": np.zeros((1, 2, 3), np.uint8)}, r"got uint8\[1,2,3\]"),
        ({"pixels": pixels(0)}, r"got uint8\[0,2,2\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_described(model: Path, inputs: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(ShapeMismatch, match=message):
        Session.open(model, CPU).run(inputs)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a\xff\xff"])
def test_a_corrupt_file_is_a_model_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot load broken\.onnx on CPUExecutionProvider") as caught:
        Session.open(path, CPU)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load none\.onnx"):
        Session.open(tmp_path / "none.onnx", CPU)


def test_a_tensor_type_that_is_not_served_is_named(tmp_path: Path) -> None:
    path = write_model(tmp_path / "wide.onnx", element=TensorProto.BFLOAT16)
    with pytest.raises(ModelError, match=r"'pixels' has the type tensor\(bfloat16\)"):
        Session.open(path, CPU)


@pytest.mark.parametrize("dtype", [str(dtype) for dtype in DTYPES.values()])
def test_every_datatype_of_the_protocol_goes_through_a_session(tmp_path: Path, dtype: str) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    session = Session.open(write_model(tmp_path / "any.onnx", element=element), CPU)
    sent = np.ones((2, 2, 2), dtype)
    assert session.inputs[0].dtype == dtype
    np.testing.assert_array_equal(session.run({"pixels": sent})["doubled"], 2)


def test_a_provider_this_build_lacks_names_the_package_to_install(model: Path) -> None:
    missing = "OpenVINOExecutionProvider"
    if missing in ort.get_available_providers():
        pytest.skip("this onnxruntime is the one with OpenVINO")
    with pytest.raises(ProviderError, match=r"asks for OpenVINO.* has only .*CPUExecutionProvider: install onnxruntime-openvino"):
        Session.open(model, Execution(provider=missing))


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU: CUDA is taken")
def test_cuda_without_a_gpu_is_refused_and_never_becomes_the_cpu(model: Path) -> None:
    with pytest.raises(ProviderError, match=r"asks for CUDAExecutionProvider, but .*(install|choose a profile)"):
        Session.open(model, Execution(provider="CUDAExecutionProvider"))


@pytest.mark.parametrize("fault", PROVIDER_FAULTS)
def test_whatever_a_provider_refuses_a_model_by_lets_the_next_execution_be_tried(
    model: Path, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise fault("User needs to provide all the dynamic shape inputs")

    monkeypatch.setattr(providers, "prepare", lambda _: None)
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(ProviderError, match=r"cannot be used \(User needs to provide"):
        Session.open(model, Execution(provider="TensorrtExecutionProvider"))
    with pytest.raises(ModelError, match=r"cannot load tiny\.onnx on CPUExecutionProvider"):
        Session.open(model, Execution(provider="CPUExecutionProvider"))


@pytest.mark.parametrize("threads", [1, 3])
def test_eight_threads_at_once_get_their_own_rows(model: Path, threads: int) -> None:
    session = Session.open(
        model, Execution.model_validate({"provider": "CPUExecutionProvider", "session": {"intra_op_num_threads": threads}})
    )

    def ask(number: int) -> bool:
        rows = 1 + number % 50
        answer = session.run({"pixels": pixels(rows, first=number % 200)})
        return np.array_equal(answer["doubled"], pixels(rows, first=number % 200).astype(np.float32) * 2)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(400)))


def test_graphs_are_refused_where_there_is_no_device_for_them(model: Path) -> None:
    opened = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    wanted = Execution.model_validate(
        {"provider": "CUDAExecutionProvider", "cuda_graphs": "auto", "batching": {"max_batch_size": 2, "buckets": [1, 2]}}
    )
    with pytest.raises(GraphRefused, match="set cuda_graphs: off"):
        Session(opened, wanted, None)


def test_warm_up_runs_at_every_size(model: Path) -> None:
    Session.open(model, CPU).warm_up([1, 2, 4])


def test_nodes_by_provider_counts_the_graph(model: Path) -> None:
    assert Session.open(model, CPU).nodes_by_provider() == {"CPUExecutionProvider": 3}
