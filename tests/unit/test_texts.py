"""Texts to tokens: exact, bounded, and whatever cannot be one refused in words for its sender; the shapes of requests and answers."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from ortserve import profile_file, requests, tasks
from ortserve.errors import InferenceError, InvalidParameter, ModelError, PayloadTooLarge, RequestError
from ortserve.execution import Execution
from ortserve.manifest import Embedding, Manifest, Source, TensorSpec, Tokenization, sha256_of
from ortserve.profile import Limits, Profile
from ortserve.replies import to_json
from ortserve.tasks.endpoint import Json
from ortserve.tasks.feature_extraction import FeatureExtraction
from ortserve.tasks.row import Row
from ortserve.tasks.text_classification import TextClassification
from tests.texts import SPECIAL, WORDS, tokenizer_json

MAX_TOKENS = 6
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def manifest(folder: Path, **changed: Any) -> Manifest:
    path = tokenizer_json(folder / "tokenizer.json")
    facts: dict[str, Any] = {
        "name": "words",
        "task": "feature-extraction",
        "inputs": tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in NAMES),
        "outputs": (TensorSpec(name="embedding", dtype="float32", shape=("batch", 4)),),
        "tokenization": Tokenization(file=path.name, max_tokens=MAX_TOKENS),
        "embedding": Embedding(dimension=4, pooling="mean", normalized=True),
        "files": {path.name: sha256_of(path)},
        "max_batch": 8,
        "variants": {},
        "source": Source(kind="huggingface", reference="made by a test", weights="none"),
        "versions": {},
        "created_at": "2026-01-01T00:00:00Z",
    }
    return Manifest(**{**facts, **changed})


def profile(**limits: Any) -> Profile:
    execution = (Execution(provider="CPUExecutionProvider"),)
    return Profile(description="made by a test", execution=execution, limits=Limits(**limits))


@pytest.fixture
def embedder(tmp_path: Path) -> FeatureExtraction:
    task = tasks.load(manifest(tmp_path), tmp_path, profile(max_text_chars=100))
    assert isinstance(task, FeatureExtraction)
    return task


@pytest.fixture
def classifier(tmp_path: Path) -> TextClassification:
    output = TensorSpec(name="probabilities", dtype="float32", shape=("batch", 2))
    task = tasks.load(
        manifest(tmp_path, task="text-classification", outputs=(output,), labels=("no", "yes")), tmp_path, profile(max_text_chars=100)
    )
    assert isinstance(task, TextClassification)
    return task


def asked(task: Any, body: bytes, endpoint: int = 0, **limits: Any) -> tuple[Any, Any]:
    takes = task.endpoints[endpoint].takes
    assert isinstance(takes, Json)
    request = requests.parse(body, "application/json", {}, [], takes, Limits(**limits))
    return request.payloads, request.parameters(takes)


def row(task: Any, text: str, *, truncate: bool = False) -> Row:
    [payload], parameters = asked(task, to_json({"inputs": text, "truncate": truncate}))
    made: Row = task.preprocess(payload, parameters)
    return made


def test_a_text_becomes_its_tokens_neither_padded_nor_cut(embedder: FeatureExtraction) -> None:
    made = row(embedder, "The bread was GOOD")
    assert {name: tensor.tolist() for name, tensor in made.tensors.items()} == {
        "input_ids": [[2, 12, 20, 13, 5, 3]],
        "attention_mask": [[1] * 6],
        "token_type_ids": [[0] * 6],
    }
    assert {tensor.dtype for tensor in made.tensors.values()} == {np.dtype(np.int64)}
    assert made.context == 6
    assert row(embedder, "bread").context == 3


def test_a_text_too_long_is_refused_with_both_numbers_or_cut_where_the_caller_allows(embedder: FeatureExtraction) -> None:
    text = "the bread was very good"
    with pytest.raises(InvalidParameter, match=r"at most 6 tokens, got 7: shorten it, or send truncate: true"):
        row(embedder, text)
    cut = row(embedder, text, truncate=True)
    assert cut.tensors["input_ids"].tolist() == [[2, 12, 20, 13, 15, 3]]  # the special token at the end stays
    assert cut.context == 6


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", InvalidParameter, "got an empty one"),
        (" \n\t\u2003", InvalidParameter, "got an empty one"),
        ("a\0b", InvalidParameter, "NUL"),
        ("a" * 101, PayloadTooLarge, "at most 100 characters, got 101"),
    ],
)
@pytest.mark.parametrize("truncate", [False, True])
def test_what_is_no_text_is_its_senders_fault(
    embedder: FeatureExtraction, text: str, error: type[RequestError], words: str, truncate: bool
) -> None:
    with pytest.raises(error, match=words):
        row(embedder, text, truncate=truncate)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"inputs":"\\ud800"}', "no valid JSON"),
        (b'{"inputs":"\xed\xa0\x80"}', "no valid JSON"),
        (b'{"inputs":' + b"[" * 100_000, "no valid JSON"),
        (b'{"inputs":"a"', "no valid JSON"),
        (b"", "no valid JSON"),
        (b'"a"', "body: Input should be an object"),
        (b"{}", "inputs: Field required"),
        (b'{"inputs":5}', "inputs: "),
        (b'{"inputs":null}', "inputs: "),
        (b'{"inputs":["a",5]}', "inputs.1: "),
        (b'{"inputs":[["a"]]}', "inputs.0: "),
        (b'{"inputs":[]}', "inputs: "),
        (b'{"inputs":"a","truncate":1}', "truncate: "),
        (b'{"input":"a","inputs":"a"}', "unknown field 'input'"),
        (b'{"inputs":["a","b","c"]}', "inputs: expected at most 2 in one request, got 3"),
    ],
)
def test_a_body_that_is_no_request_names_its_fault_and_repeats_nothing(embedder: FeatureExtraction, body: bytes, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        asked(embedder, body, max_texts_per_request=2)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


def test_one_text_or_many(embedder: FeatureExtraction) -> None:
    assert asked(embedder, b'{"inputs":"a"}')[0] == ["a"]
    assert asked(embedder, b'{"inputs":["a","b"]}')[0] == ["a", "b"]


def test_an_answer_has_every_component_and_the_tokens(embedder: FeatureExtraction) -> None:
    _, parameters = asked(embedder, b'{"inputs":"a"}')
    vector = np.array([[0.1, -0.5, 1e-8, 1]], np.float32)
    values = [embedder.postprocess({"embedding": vector}, Row({}, tokens), parameters) for tokens in (3, 4)]
    rendered = to_json(embedder.endpoints[0].render("words", "1", values))
    assert rendered == (b'{"model":"words","version":"1","embeddings":[[0.1,-0.5,1e-8,1.0],[0.1,-0.5,1e-8,1.0]],"usage":{"tokens":7}}')


def test_an_embedding_that_is_no_numbers_is_no_answer(embedder: FeatureExtraction) -> None:
    with pytest.raises(InferenceError):
        embedder.postprocess({"embedding": np.array([[np.nan, 0, 0, 0]], np.float32)}, Row({}, 3), None)  # type: ignore[arg-type]


def test_openais_shape_in_floats_and_base64(embedder: FeatureExtraction) -> None:
    vector = np.array([[0.1, -0.5, 1e-8, 1]], np.float32)
    for asked_for, shown in ((b"", vector[0].tolist()), (b',"encoding_format":"base64"', base64.b64encode(vector.tobytes()).decode())):
        payloads, parameters = asked(embedder, b'{"input":"a","model":"words","user":"me","dimensions":4' + asked_for + b"}", endpoint=1)
        assert payloads == ["a"]
        value = embedder.postprocess({"embedding": vector}, Row({}, 3), parameters)
        rendered = embedder.endpoints[1].render("words", "1", [value])
        assert rendered["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        [data] = rendered["data"]
        assert (data["object"], data["index"]) == ("embedding", 0)
        assert data["embedding"] == shown if isinstance(shown, str) else data["embedding"].tolist() == shown


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (b'"model":"words","dimensions":3', "dimensions: expected 4 or nothing"),
        (b'"model":"words","encoding_format":"hex"', "encoding_format: "),
        (b'"model":"words","input":[1,2]', "expected text, got token ids"),
        (b'"model":"words","input":[[1,2],[3]]', "expected text, got token ids"),
        (b'"model":"words","dimension":4', "unknown field 'dimension'"),
    ],
)
def test_openais_requests_that_this_model_cannot_answer(embedder: FeatureExtraction, fields: bytes, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        asked(embedder, b'{"input":"a",' + fields + b"}", endpoint=1)


def test_classes_best_first(classifier: TextClassification) -> None:
    for body, shown in ((b'{"inputs":"good"}', 2), (b'{"inputs":"good","top_k":1}', 1)):
        _, parameters = asked(classifier, body)
        value = classifier.postprocess({"probabilities": np.array([[0.25, 0.75]], np.float32)}, Row({}, 3), parameters)
        rendered = classifier.endpoints[0].render("words", "1", [value])
        best = {"class_id": 1, "label": "yes", "score": 0.75}
        assert rendered["results"] == [{"predictions": [best, {"class_id": 0, "label": "no", "score": 0.25}][:shown]}]
        assert rendered["usage"] == {"tokens": 3}


@pytest.mark.parametrize("top_k", [b"0", b"3", b'"1"', b"true"])
def test_a_number_of_classes_that_there_is_not_is_refused(classifier: TextClassification, top_k: bytes) -> None:
    with pytest.raises(InvalidParameter, match="top_k: "):
        asked(classifier, b'{"inputs":"a","top_k":' + top_k + b"}")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokenization": None}, "expected how texts become tokens"),
        ({"embedding": None}, "expected an output embedding"),
        ({"outputs": ()}, "expected an output embedding"),
        ({"inputs": (TensorSpec(name="pixels", dtype="uint8", shape=("batch", 8)),)}, "expected the inputs input_ids, attention_mask"),
        ({"files": {}}, "has no file tokenizer.json"),
        ({"files": {"tokenizer.json": "0" * 64}}, "is damaged"),
        ({"task": "text-classification"}, "expected an output probabilities"),
    ],
)
def test_a_package_that_does_not_fit_its_task_is_refused(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tasks.load(manifest(tmp_path, **changed), tmp_path, profile())


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    made = manifest(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    made = made.model_copy(update={"files": {"tokenizer.json": sha256_of(tmp_path / "tokenizer.json")}})
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read by this version of tokenizers"):
        tasks.load(made, tmp_path, profile())


def test_a_published_tokenizer_that_pads_and_cuts_by_itself_does_not_here(embedder: FeatureExtraction, tmp_path: Path) -> None:
    published = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(published.encode("bread")) == 8
    assert row(embedder, "bread").tensors["input_ids"].shape == (1, 3)


@pytest.mark.parametrize("name", profile_file.shipped_names())
def test_one_request_of_texts_cannot_fill_a_shipped_profiles_queue(name: str) -> None:
    shipped = profile_file.load(name)
    for execution in shipped.execution:
        assert execution.text_batching is not None
        assert shipped.limits.max_texts_per_request <= execution.text_batching.max_queue_size / 2


def test_what_a_sender_of_tensors_may_put_into_each_input(embedder: FeatureExtraction, classifier: TextClassification) -> None:
    for task in (embedder, classifier):
        assert task.bounds == {"input_ids": len(SPECIAL) + len(WORDS), "attention_mask": 2, "token_type_ids": 2}
        parameters = asked(task, b'{"inputs": ["good film, unheard of"]}')[1]
        tensors = task.preprocess("good film, unheard", parameters).tensors
        assert all(tensor.min() >= 0 and tensor.max() < task.bounds[name] for name, tensor in tensors.items())
