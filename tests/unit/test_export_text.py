"""Models of text on the build side: the directory read with care, pooling by the book, every attention fused or the build fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxsim
import pytest
import torch

from ortserve.errors import CalibrationError, ExportError, SourceError
from ortserve.execution import Execution
from ortserve.export import fp16, hf_directory, int8
from ortserve.export.chatter import quiet
from ortserve.export.graph import fused_operators
from ortserve.export.options import Options
from ortserve.export.tasks.feature_extraction import similarities, spearman
from ortserve.export.tasks.texts import read_texts
from ortserve.export.text import directory, to_onnx
from ortserve.export.text.module import Embedder, TorchReference, input_names, pool
from ortserve.session import Session
from tests.texts import minilm, tiny_classifier

SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
DISTIL = {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}


def tiny(family: str) -> Any:
    from transformers import AutoConfig, AutoModel

    facts = DISTIL if family == "distilbert" else SMALL | ({"embedding_size": 32} if family == "electra" else {})
    config = AutoConfig.for_model(family, **facts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(config).eval()


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    model = tiny("bert")
    return Embedder(model, input_names(model, model.config), "mean", normalize=True)


def rows(module: Embedder, lengths: tuple[int, ...]) -> dict[str, Any]:
    width = max(lengths)
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(5, 99, mask.shape) * mask
    columns = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    return {name: columns[name] for name in module.names}


@pytest.mark.parametrize("family", sorted(to_onnx.FUSED_FAMILIES))
def test_every_family_that_is_promised_is_fused_and_answers_as_pytorch(family: str, tmp_path: Path) -> None:
    model = tiny(family)
    module = Embedder(model, input_names(model, model.config), "mean", normalize=True).eval()
    graph = to_onnx.fuse(to_onnx.export(module, None), model.config)
    assert fused_operators(graph)["Attention"] == 2
    fp16.save(graph, tmp_path / "graph.onnx")
    session = Session.open(tmp_path / "graph.onnx", Execution(provider="CPUExecutionProvider"))
    assert [spec.shape for spec in session.inputs] == [("batch", "sequence")] * len(module.names)
    reference = TorchReference(module)
    for lengths in ((2,), (5, 11, 3), (40,)):
        inputs = rows(module, lengths)
        np.testing.assert_allclose(session.run(inputs)["embedding"], reference(inputs)["embedding"], atol=1e-5)


def test_an_attention_that_is_not_fused_fails_the_build(embedder: Embedder) -> None:
    graph = to_onnx.export(embedder, None)
    with quiet():
        simplified, _ = onnxsim.simplify(graph, check_n=0)  # makes Gemm nodes of what the fusions look for
    with pytest.raises(ExportError, match="expected 2 fused attentions in a bert, one for each layer, got 0"):
        to_onnx.fuse(simplified, embedder.model.config)  # type: ignore[arg-type]


def test_lower_precisions_of_a_fused_graph_answer_nearly_the_same(embedder: Embedder, tmp_path: Path) -> None:
    graph = to_onnx.fuse(to_onnx.export(embedder, None), embedder.model.config)  # type: ignore[arg-type]
    inputs = rows(embedder, (5, 11, 3))
    fp16.save(fp16.to_fp16(graph, [inputs]), tmp_path / "fp16.onnx")
    int8.to_dynamic_int8(graph, tmp_path / "int8.onnx")
    want = TorchReference(embedder.eval())(inputs)["embedding"]
    for precision, distance in (("fp16", 1e-4), ("int8", 2e-2)):
        session = Session.open(tmp_path / f"{precision}.onnx", Execution(provider="CPUExecutionProvider"))
        have = session.run(inputs)["embedding"]
        assert have.dtype == np.float32
        assert 1 - (have * want).sum(axis=1).min() < distance
        assert np.abs(have - want).max() > 0
    stored = fp16.onnx.load(tmp_path / "int8.onnx")
    assert fused_operators(stored)["QAttention"] == 2
    assert any(node.op_type == "MatMulInteger" for node in stored.graph.node)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken"])
def test_pooling_is_of_the_tokens_alone(pooling: Any) -> None:
    states = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    by_hand = {
        "mean": lambda own: own.mean(0),
        "cls": lambda own: own[0],
        "max": lambda own: own.max(0).values,
        "mean_sqrt_len_tokens": lambda own: own.sum(0) / len(own) ** 0.5,
        "lasttoken": lambda own: own[-1],
    }[pooling]
    want = torch.stack([by_hand(states[row, : mask[row].sum()]) for row in range(3)])
    torch.testing.assert_close(pool(states, mask, pooling), want)


def test_pickled_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(SourceError, match=r"expected model\.safetensors, got only pytorch_model\.bin, which could run code") as caught:
        hf_directory.load(Options(source=f"hf:{tmp_path}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "no such directory"),
        ({}, "there is no config.json"),
        ({"config.json": "{}"}, "got no weights"),
        ({"config.json": "{", "model.safetensors": ""}, "config.json is not one that transformers knows"),
        ({"config.json": '{"model_type": "nothing"}', "model.safetensors": ""}, "config.json is not one that transformers knows"),
    ],
)
def test_a_directory_that_is_no_model_says_what_is_missing(tmp_path: Path, files: dict[str, str] | None, words: str) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    with pytest.raises(SourceError, match=words):
        hf_directory.load(Options(source=f"hf:{folder}"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["max"]}, "max"),
    ],
)
def test_pooling_is_read_as_sentence_transformers_writes_it(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    assert directory.pooling_of(tmp_path) == (None, None)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert directory.pooling_of(tmp_path) == (expected, False)
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"type": "x.Normalize", "path": "2_Normalize"}]))
    assert directory.pooling_of(tmp_path) == (expected, True)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ('[{"type": "x.Dense", "path": "2_Dense"}]', "has a step Dense"),
        ('[{"type": "x.Pooling", "path": "../../etc"}]', "expected a folder inside"),
        ('[{"type": "x.Pooling", "path": "none"}]', "pools by nothing"),
        ('{"a": 1}', "not as sentence-transformers writes it"),
    ],
)
def test_steps_that_are_not_exported_are_refused(tmp_path: Path, modules: str, words: str) -> None:
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(SourceError, match=words):
        directory.pooling_of(tmp_path)


def test_the_real_embedders_directory_is_understood() -> None:
    loaded = hf_directory.load(Options(source=f"hf:{minilm()}"))
    assert (loaded.name, loaded.task.name) == ("model", "feature-extraction")
    assert loaded.facts["embedding"].model_dump() == {"dimension": 384, "pooling": "mean", "normalized": True}
    assert loaded.facts["tokenization"].max_tokens == 256
    assert json.loads(loaded.files["tokenizer.json"])["truncation"] is None
    assert [spec.name for spec in loaded.task.inputs] == ["input_ids", "attention_mask", "token_type_ids"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"max_tokens": 257}, "at most 256, which is the model's own limit"),
        ({"max_tokens": 2}, "at least 3"),
        ({"task": "text-classification"}, "whose classes were never trained"),
        ({"task": "image-classification"}, "expected feature-extraction or text-classification"),
        ({"weights": "w.pth"}, "leave out --weights"),
    ],
)
def test_options_that_do_not_fit_an_embedder_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        hf_directory.load(Options(source=f"hf:{minilm()}", **changed))


def test_a_classifier_is_told_by_its_architecture_and_weights_that_lack_are_missed(tmp_path: Path) -> None:
    tiny_classifier(tmp_path)
    loaded = hf_directory.load(Options(source=f"hf:{tmp_path}"))
    assert (loaded.task.name, loaded.facts["labels"]) == ("text-classification", ("negative", "neutral", "positive"))
    assert loaded.facts["tokenization"].max_tokens == 40
    as_embedder = hf_directory.load(Options(source=f"hf:{tmp_path}", task="feature-extraction", pooling="cls", normalize=False))
    assert as_embedder.facts["embedding"].model_dump() == {"dimension": 32, "pooling": "cls", "normalized": False}
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"lack 1 of the model's tensors \(classifier\.weight"):
        hf_directory.load(Options(source=f"hf:{tmp_path}"))


def test_the_order_of_similarities_is_what_is_measured() -> None:
    embeddings = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    want = similarities(embeddings)
    assert len(want) == 190
    assert spearman(similarities(embeddings * 3), want) == pytest.approx(1)
    assert spearman(-want, want) == pytest.approx(-1)
    assert abs(spearman(similarities(np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)), want)) < 0.3


def test_texts_to_measure_on_are_read_line_by_line(tmp_path: Path) -> None:
    seen: list[str] = []

    def tokenise(texts: Any) -> dict[str, Any]:
        seen.extend(texts)
        return {"input_ids": np.zeros((len(texts), 1))}

    with pytest.raises(CalibrationError, match="got none"):
        read_texts(tmp_path, tokenise, lambda *_: None)
    (tmp_path / "a.txt").write_text("one\n\n  two \n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("drei ü\n", encoding="utf-8")
    assert read_texts(tmp_path, tokenise, lambda *_: None).note == "3 texts of 2 files"
    assert seen == ["one", "two", "drei ü"]
