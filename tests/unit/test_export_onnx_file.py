"""A given ONNX file: external data stays in its folder, inputs are understood or refused, a fixed batch is freed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ortserve.errors import ExportError, SourceError
from ortserve.export.onnx_file import interface, load, read, softmax
from ortserve.export.options import Options
from ortserve.export.simplify import simplify
from ortserve.export.verify import expect, verify

CLASSES = 5


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def given(
    path: Path,
    *,
    shape: tuple[int | str, ...] = ("N", 3, 8, 8),
    dtype: int = TensorProto.FLOAT,
    end: str | None = None,
    flatten: tuple[int, ...] = (0, -1),
    opset: int = 18,
    external: str | None = None,
) -> Path:
    """A linear classifier on the mean and maximum of each position, as somebody else might have exported it."""
    weight = np.random.default_rng(5).normal(0, 0.2, (3 * 8 * 8, CLASSES)).astype(np.float32)
    nodes = [] if dtype == TensorProto.FLOAT else [helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT)]
    first = "image" if dtype == TensorProto.FLOAT else "real"
    nodes += [
        helper.make_node("Reshape", [first, "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], ["answer" if end is None else "raw"]),
    ]
    if end is not None:
        nodes.append(helper.make_node(end, ["raw"], ["answer"]))
    graph = helper.make_graph(
        nodes,
        "given",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [shape[0], CLASSES])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(flatten, np.int64), "flat")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    if external is not None:
        onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
        model = onnx.load(str(path), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = external
        path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("end", [None, "Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("shape", "dtype", "flatten"),
    [
        (("N", 3, 8, 8), TensorProto.FLOAT, (0, -1)),
        (("N", 8, 8, 3), TensorProto.FLOAT, (0, -1)),
        (("N", 8, 8, 3), TensorProto.UINT8, (0, -1)),
        ((1, 3, 8, 8), TensorProto.FLOAT, (1, -1)),
        ((4, 3, 8, 8), TensorProto.FLOAT, (4, 192)),
    ],
)
def test_composed_graph_answers_as_the_given_one(
    tmp_path: Path, end: str | None, shape: tuple[int | str, ...], dtype: int, flatten: tuple[int, ...]
) -> None:
    options = Options(source=str(given(tmp_path / "m.onnx", shape=shape, dtype=dtype, end=end, flatten=flatten)))
    loaded = load(options)
    composed, stored = simplify(loaded.graph(None)), tmp_path / "stored.onnx"
    onnx.save(composed, str(stored))
    want = expect(loaded.task, loaded.reference, 9, None, silent)
    report = verify(stored, loaded.task, want, "fp32", options, silent)
    assert report.passed, report.failures
    assert len(loaded.facts["labels"]) == CLASSES
    np.testing.assert_allclose(want.cases[0].answers["probabilities"].sum(axis=1), 1.0, atol=1e-5)


def test_file_of_an_old_opset_is_converted(tmp_path: Path) -> None:
    loaded = load(Options(source=str(given(tmp_path / "m.onnx", opset=9, end="Softmax"))))
    assert loaded.graph(None).opset_import[0].version == 18


def test_batch_fixed_inside_ends_in_a_clear_error(tmp_path: Path) -> None:
    loaded = load(Options(source=str(given(tmp_path / "m.onnx", shape=(2, 3, 8, 8), flatten=(-1, 192)))))
    assert loaded.graph(None)  # nothing fixed inside: the row count is the free one
    path = given(tmp_path / "f.onnx", shape=(1, 3, 8, 8), flatten=(1, -1))
    model = onnx.load(str(path))
    model.graph.node.insert(0, helper.make_node("Expand", ["image", "whole"], ["wide"]))
    model.graph.initializer.append(numpy_helper.from_array(np.int64([1, 3, 8, 8]), "whole"))
    model.graph.node[1].input[0] = "wide"
    model.graph.initializer.append(numpy_helper.from_array(np.float32([[1.0]]), "one"))
    model.graph.node.append(helper.make_node("Reshape", ["answer", "fixed"], ["last"]))
    model.graph.initializer.append(numpy_helper.from_array(np.int64([-1, CLASSES * 2 - CLASSES]), "fixed"))
    model.graph.node.append(helper.make_node("MatMul", ["one", "last"], ["final"]))
    model.graph.output[0].name = "final"
    onnx.save(model, str(path))
    with pytest.raises(ExportError, match="exported for 1"):
        load(Options(source=str(path))).graph(None)


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../weights.bin", "sub/../../weights.bin", "C:\\weights.bin", "link.bin", "dir/weights.bin", "."]
)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(8000))
    (outside / "weights.bin").write_bytes(bytes(8000))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    (folder / "dir").symlink_to(outside)
    with pytest.raises(SourceError, match="keeps weights"):
        read(given(folder / "m.onnx", external=location))


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    model = read(given(tmp_path / "m.onnx", external="weights.bin"))
    assert all(not tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": ("N", 1, 8, 8)}, "float\\[N,3,H,W\\]"),
        ({"shape": ("N", 192)}, "float\\[N,3,H,W\\]"),
        ({"shape": ("N", 3, 8, 3)}, "float\\[N,3,H,W\\]"),
        ({"dtype": TensorProto.UINT8}, "uint8\\[N,H,W,3\\]"),
        ({"end": "Sigmoid"}, "do not exclude each other"),
    ],
)
def test_other_interfaces_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        interface(read(given(tmp_path / "m.onnx", **changes)), "m.onnx")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x08\x08\x12"])
def test_damaged_file_ends_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"m\.onnx") as caught:
        load(Options(source=str(path)))
    assert "\n" not in str(caught.value)


def test_options_that_cannot_apply_are_refused(tmp_path: Path) -> None:
    path = str(given(tmp_path / "m.onnx"))
    with pytest.raises(SourceError, match="brings its weights itself"):
        load(Options(source=path, weights="w.pth"))
    with pytest.raises(SourceError, match="fixes its input at 8x8"):
        load(Options(source=path, input_size=(16, 16)))
    with pytest.raises(SourceError, match="no such file"):
        load(Options(source=str(tmp_path / "none.onnx")))


def test_softmax_survives_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.float32([[1e4, 0.0], [0.0, 0.0]])), [[1.0, 0.0], [0.5, 0.5]])
