"""Which of several models answers a request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ortserve.choice import choices
from ortserve.errors import InvalidParameter
from ortserve.model import ServedModel
from ortserve.tasks.endpoint import Endpoint, Files, single


def model(name: str, version: str, *paths: str) -> ServedModel:
    """What `choices` looks at of a served model."""
    endpoints = tuple(Endpoint(path, Files("image", "image/", dict), single("x")) for path in paths)
    return cast(ServedModel, SimpleNamespace(name=name, version=version, task=SimpleNamespace(endpoints=endpoints)))


def test_a_path_that_one_model_answers_needs_no_name() -> None:
    cat, dog = model("cat", "1", "/classify"), model("dog", "2", "/detect")
    found = choices([cat, dog])
    assert set(found) == {"/classify", "/detect"}
    assert found["/detect"].of(None).served is dog
    assert found["/detect"].of("dog").served is dog
    assert found["/detect"].of("dog:2").served is dog
    assert found["/detect"].gate({}) is dog


def test_where_the_request_names_the_model_nobody_knows_at_its_head_whether_there_is_a_place() -> None:
    assert choices([model("cat", "1", "/classify"), model("dog", "2", "/classify")])["/classify"].gate({}) is None


@pytest.mark.parametrize("wanted", ["cat", "dog:1", "dog:", ":2", "", "Dog", "dog:2:2"])
def test_a_name_that_is_not_the_one_models_is_refused_all_the_same(wanted: str) -> None:
    found: Any = choices([model("cat", "1", "/classify"), model("dog", "2", "/detect")])["/detect"]
    if wanted == "dog:":
        assert found.of(wanted).served.name == "dog"
        return
    with pytest.raises(InvalidParameter, match="model: expected 'dog', which /detect has here"):
        found.of(wanted)


def test_where_several_answer_a_request_says_which() -> None:
    cat, dog = model("cat", "1", "/classify"), model("dog", "2", "/classify")
    found = choices([cat, dog])["/classify"]
    assert found.of("cat").served is cat
    assert found.of("dog:2").served is dog
    with pytest.raises(InvalidParameter, match="expected one of 'cat', 'dog', got none: /classify has several models"):
        found.of(None)
    with pytest.raises(InvalidParameter, match="expected one of 'cat', 'dog', which /classify has here"):
        found.of("cow")
