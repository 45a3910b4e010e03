"""Paths find what stands under their template, and nothing else does."""

from __future__ import annotations

import pytest

from ortserve.paths import Paths

TEMPLATES = ("/", "/models", "/models/{name}", "/models/stats", "/models/{name}/ready", "/models/{name}/versions/{version}/infer")


@pytest.fixture
def paths() -> Paths[str]:
    table: Paths[str] = Paths()
    for template in TEMPLATES:
        assert table.put(template, template) == template
    return table


@pytest.mark.parametrize(
    ("path", "template", "values"),
    [
        ("/", "/", {}),
        ("/models", "/models", {}),
        ("/models/a", "/models/{name}", {"name": "a"}),
        ("/models/stats", "/models/stats", {}),
        ("/models/ready", "/models/{name}", {"name": "ready"}),
        ("/models/stats/ready", "/models/{name}/ready", {"name": "stats"}),
        ("/models/%2e/versions/ä/infer", "/models/{name}/versions/{version}/infer", {"name": "%2e", "version": "ä"}),
        ("", None, {}),
        ("/models/", None, {}),
        ("/models//ready", None, {}),
        ("/models/a/", None, {}),
        ("/models/a/versions/1", None, {}),
        ("/models/a/versions//infer", None, {}),
        ("/models/a/versions/1/infer/more", None, {}),
        ("/models/{name}/ready/", None, {}),
        ("//models", None, {}),
    ],
)
def test_found(paths: Paths[str], path: str, template: str | None, values: dict[str, str]) -> None:
    assert paths.find(path) == (template, values)


def test_what_stands_there_first_stays(paths: Paths[str]) -> None:
    assert paths.put("/models/{name}/ready", "another") == "/models/{name}/ready"
    assert paths.put("/models", "another") == "/models"
