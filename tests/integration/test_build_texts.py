"""What the build makes of models of text: every attention fused, the tokenizer inside, the order of similarities kept in int8."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ortserve.execution import Execution
from ortserve.manifest import Manifest
from ortserve.session import Session
from tests.serving import ROOT, bentoml_environment
from tests.texts import minilm

pytestmark = pytest.mark.integration

CPU = Execution(provider="CPUExecutionProvider")


def test_the_real_embedder_is_fused_verified_and_whole(texts_home: Path) -> None:
    folder = texts_home / "models" / "minilm" / "1"
    manifest = Manifest.read(folder)
    assert (manifest.task, manifest.source.kind, manifest.source.reference) == ("feature-extraction", "huggingface", "BertModel")
    assert manifest.variants["fp32"].fused == {"Attention": 6, "BiasGelu": 6, "EmbedLayerNormalization": 1, "SkipLayerNormalization": 12}
    assert manifest.variants["int8"].fused["QAttention"] == 6
    assert {path.name for path in folder.iterdir()} == {"fp32.onnx", "int8.onnx", "manifest.json", "model.yaml", "tokenizer.json"}
    agreements = {precision: variant.parity.agreement for precision, variant in manifest.variants.items()}
    assert {agreement.measure for agreement in agreements.values()} == {"Spearman of similarities"}
    assert agreements["fp32"].value == pytest.approx(1, abs=1e-6)
    assert agreements["int8"].value is not None
    assert agreements["int8"].value >= 0.98
    assert manifest.variants["int8"].size_bytes < manifest.variants["fp32"].size_bytes / 3
    checked = {check.inputs for check in manifest.variants["fp32"].parity.checks}
    assert checked == {"random tokens", "2 tokens", "256 tokens", "texts"}


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("int8", 0.06)])
def test_a_row_answers_nearly_the_same_however_long_its_neighbours_are(texts_home: Path, precision: str, atol: float) -> None:
    session = Session.open(texts_home / "models" / "minilm" / "1" / f"{precision}.onnx", CPU)
    ids = np.random.default_rng(0).integers(2000, 20000, (3, 40))
    mask = (np.arange(40) < np.array([7, 40, 3])[:, None]).astype(np.int64)
    together = session.run({"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})["embedding"]
    alone = session.run({"input_ids": ids[:1, :7], "attention_mask": mask[:1, :7], "token_type_ids": np.zeros((1, 7), np.int64)})
    np.testing.assert_allclose(together[:1], alone["embedding"], atol=atol)


def test_a_classifier_keeps_its_labels(texts_home: Path) -> None:
    manifest = Manifest.read(texts_home / "models" / "mood" / "1")
    assert (manifest.task, manifest.labels) == ("text-classification", ("negative", "neutral", "positive"))
    assert manifest.tokenization is not None
    assert manifest.tokenization.max_tokens == 40
    tokenizer = json.loads((texts_home / "models" / "mood" / "1" / "tokenizer.json").read_text())
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--precision", "fp32,int8"), "int8 must have its top-1 agreement measured, and that cannot be"),
        (("--mean", "0", "0", "0"), "takes text, no pictures"),
    ],
)
def test_mistakes_end_in_one_line(texts_home: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    command = [sys.executable, "build_model.py", f"hf:{texts_home / 'mood'}", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=bentoml_environment(tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_directory_of_texts_for_a_classifier_that_answers_one_class_measures_nothing(texts_home: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "same.txt").write_text("good\n" * 200)
    command = [
        sys.executable,
        "build_model.py",
        f"hf:{texts_home / 'mood'}",
        "--precision",
        "int8",
        "--calibration",
        str(tmp_path / "texts"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=bentoml_environment(tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "200 texts in 1 classes" in done.stderr


def test_the_directory_of_the_package_is_never_written_to() -> None:
    assert not list(minilm().glob("*.onnx"))
