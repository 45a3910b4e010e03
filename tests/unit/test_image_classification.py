"""Image classification: parameters, a picture's way in, the answer's way out, and the table of tasks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ortserve import images, tasks
from ortserve.errors import InferenceError, InvalidImage, InvalidParameter, ModelError
from ortserve.execution import Execution
from ortserve.manifest import Manifest, Preprocessing, Source, TensorSpec
from ortserve.profile import Images, Limits, Profile
from ortserve.tasks import best_classes as best_classes_module
from ortserve.tasks.best_classes import top
from ortserve.tasks.image_classification import ImageClassification, Parameters
from ortserve.tasks.row import Row

FOLDER = Path()  # a classifier reads no file of its package
BEST = Parameters(top_k=1)
HOW = Preprocessing(mode="crop", height=16, width=24, resize_size=30, mean=(0, 0, 0), std=(1, 1, 1))


def manifest(classes: int = 10, **changes: Any) -> Manifest:
    """A classifier's manifest with that many classes."""
    facts: dict[str, Any] = {
        "name": "net",
        "task": "image-classification",
        "inputs": (TensorSpec(name="image", dtype="uint8", shape=("batch", 16, 24, 3)),),
        "outputs": (
            TensorSpec(name="logits", dtype="float32", shape=("batch", classes)),
            TensorSpec(name="probabilities", dtype="float32", shape=("batch", classes)),
        ),
        "labels": tuple(f"class {index}" for index in range(classes)),
        "preprocessing": HOW,
        "max_batch": 8,
        "variants": {},
        "source": Source(kind="digits", reference="digits", weights="trained"),
        "versions": {},
        "created_at": "2025-01-01T00:00:00+00:00",
    }
    return Manifest(**{**facts, **changes})


def profile(**changes: Any) -> Profile:
    """The smallest profile."""
    return Profile(description="test", execution=(Execution(provider="CPUExecutionProvider"),), **changes)


def task(classes: int = 10) -> ImageClassification:
    """The task for a model of that many classes."""
    return ImageClassification(manifest(classes), FOLDER, profile())


def jpeg(width: int = 100, height: int = 80) -> bytes:
    """A noisy JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_manifest_names_the_task() -> None:
    loaded = tasks.load(manifest(), FOLDER, profile())
    assert isinstance(loaded, ImageClassification)
    assert loaded.outputs == ("probabilities",)


def test_an_unknown_task_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(
        ModelError, match=r"model net is for the task 'nothing-like-it', expected one of .*image-classification.*: build it"
    ):
        tasks.load(manifest(task="nothing-like-it"), FOLDER, profile())


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": ()},
        {"inputs": (TensorSpec(name="image", dtype="float32", shape=("batch", 16, 24, 3)),)},
        {"inputs": (TensorSpec(name="image", dtype="uint8", shape=("batch", 24, 16, 3)),)},
        {"inputs": (TensorSpec(name="image", dtype="uint8", shape=("batch", 16, 24, 3)),) * 2},
        {"outputs": (TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),)},
        {"outputs": (TensorSpec(name="probabilities", dtype="float32", shape=("batch", 11)),)},
        {"labels": ()},
    ],
)
def test_a_model_that_is_no_classifier_of_pictures_is_refused_at_start(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"model net is for image-classification: expected one .*|.*expected an output .*build it again"):
        tasks.load(manifest(**changes), FOLDER, profile())


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "default"), [(1, 1), (4, 4), (5, 5), (1000, 5)])
def test_top_k_has_a_default(classes: int, default: int) -> None:
    assert task(classes).parameters({}) == Parameters(top_k=default)


def test_top_k_may_be_any_number_of_classes() -> None:
    for value in range(1, 11):
        assert task().parameters({"top_k": str(value)}) == Parameters(top_k=value)


@pytest.mark.parametrize(
    "text",
    ["0", "11", "-1", "+5", "5.0", "1e1", " 5", "5 ", "5\n", "05", "", "five", "٥", "５", "1_0", "0x5", "²", "nan", "[5]", "9" * 5000],  # noqa: RUF001
)
def test_anything_but_a_decimal_in_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^top_k: expected a whole number from 1 to 10, got ") as caught:
        task().parameters({"top_k": text})
    assert len(str(caught.value)) < 150
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    ("field", "hint"),
    [("topk", "did you mean 'top_k'?"), ("top-k", "did you mean 'top_k'?"), ("threshold", "expected top_k"), ("", "expected")],
)
def test_an_unknown_parameter_is_refused_naming_the_nearest(field: str, hint: str) -> None:
    with pytest.raises(InvalidParameter, match=f"^unknown parameter '{field}': ") as caught:
        task().parameters({"top_k": "3", field: "3"})
    assert hint in str(caught.value)


# --- in --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["exact", "draft"])
def test_a_picture_becomes_one_row_of_the_models_input(decoder: Any) -> None:
    tensors = ImageClassification(manifest(), FOLDER, profile(images=Images(decoder=decoder))).preprocess(memoryview(jpeg()), BEST).tensors
    assert list(tensors) == ["image"]
    assert (tensors["image"].shape, tensors["image"].dtype, tensors["image"].flags.c_contiguous) == ((1, 16, 24, 3), np.uint8, True)
    assert np.array_equal(tensors["image"][0], images.load(jpeg(), HOW, Limits(), decoder=decoder))


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(InvalidImage):
        task().preprocess(b"no picture", BEST)


def test_no_thread_is_asked_for_a_tiny_png_nor_pythons_for_a_small_jpeg() -> None:
    tiny = io.BytesIO()
    Image.new("RGB", (28, 28)).save(tiny, "PNG")
    classifier = task()
    assert isinstance(classifier, tasks.Begins)
    assert [classifier.soon(memoryview(data)) for data in (tiny.getvalue(), jpeg())] == [True, False]
    assert [classifier.begin(memoryview(data), BEST) is None for data in (tiny.getvalue(), jpeg())] == [True, False]


def test_the_profiles_limits_hold() -> None:
    with pytest.raises(images.ImageTooLarge):
        ImageClassification(manifest(), FOLDER, profile(limits=Limits(max_image_pixels=7999))).preprocess(jpeg(), BEST)


# --- out -------------------------------------------------------------------------------------------------------------


def answer(scores: list[float], k: int) -> list[dict[str, Any]]:
    """The answer to one row of scores."""
    row = np.array([scores], np.float32)
    return task(len(scores)).postprocess({"probabilities": row}, Row({}), Parameters(top_k=k))


def test_the_answer_is_best_first_in_plain_types_with_the_shortest_numbers() -> None:
    assert answer([0.1, 0.6, 0.3], 2) == [
        {"class_id": 1, "label": "class 1", "score": 0.6},
        {"class_id": 2, "label": "class 2", "score": 0.3},
    ]
    for entry in answer([0.1, 0.6, 0.3], 3):
        assert [type(value) for value in entry.values()] == [int, str, float]
    assert json.dumps(answer([0.1, 0.2, 0.7], 1)) == '[{"class_id": 2, "label": "class 2", "score": 0.7}]'


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_equal_scores_go_by_class_id(k: int) -> None:
    assert [entry["class_id"] for entry in answer([0.2, 0.1, 0.3, 0.2, 0.2], k)] == [2, 0, 3, 4, 1][:k]


@given(scores=hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0])), data=st.data())
def test_top_equals_a_full_stable_sort(scores: Any, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    with patch.object(best_classes_module, "_FEW", data.draw(st.sampled_from([0, 1000]))):  # found, or sorted as a whole
        chosen = top(scores, k)
    assert chosen.tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


@given(score=st.floats(0, 1, width=32))
def test_a_score_means_the_models_own_float32(score: float) -> None:
    assert np.float32(answer([score, -1.0], 1)[0]["score"]) == np.float32(score)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_error_and_no_answer(bad: float) -> None:
    with pytest.raises(InferenceError, match="no numbers"):
        answer([bad, bad, 0.5], 2)
