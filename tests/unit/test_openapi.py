"""The OpenAPI document: valid, complete, and true of what the edge does."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from openapi_spec_validator import validate

from ortserve import errors, replies

ROOT = Path(__file__).resolve().parents[2]

V2_MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
PREDICTION = {"class_id": 7, "label": "7", "score": 0.5}
ERROR = {"code": "invalid_image", "message": "no", "request_id": "1"}

# In a process of its own, with a store of its own: service.py names a model of the store when it is imported, not before it is asked for.
_CODE = "import yaml, sys; from service import ModelService; yaml.safe_dump(ModelService.openapi_spec.asdict(), sys.stdout)"


@cache
def document() -> dict[str, Any]:
    result = subprocess.run([sys.executable, "-c", _CODE], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    loaded: dict[str, Any] = yaml.safe_load(result.stdout)
    return _text_keys(loaded)


def _text_keys(value: Any) -> Any:
    """The document as JSON has it: every key a text."""
    if isinstance(value, dict):
        return {str(key): _text_keys(item) for key, item in value.items()}
    return [_text_keys(item) for item in value] if isinstance(value, list) else value


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, operation) for path, item in document()["paths"].items() for method, operation in item.items()]


def test_it_is_valid_openapi() -> None:
    validate(document())


def test_it_describes_every_path() -> None:
    described = {(method.upper(), path) for path, method, _ in operations()}
    assert described == {
        ("POST", "/classify"),
        ("POST", "/classify_batch"),
        ("POST", "/classify_text"),
        ("POST", "/embed"),
        ("POST", "/v1/embeddings"),
        ("POST", "/detect"),
        ("POST", "/detect_batch"),
        ("GET", "/models"),
        ("GET", "/models/{name}"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/v2"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/stats"),
        *(("GET", model + what) for model in V2_MODEL for what in ("", "/ready", "/config", "/stats")),
        *(("POST", f"{model}/infer") for model in V2_MODEL),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/{name}/load"),
        ("POST", "/v2/repository/models/{name}/unload"),
    }


def test_every_reference_leads_somewhere() -> None:
    for name in re.findall(r"#/components/schemas/(\w+)", str(document())):
        assert name in document()["components"]["schemas"]


def test_every_error_response_has_the_one_shape_of_its_side() -> None:
    for path, _, operation in operations():
        shape = "V2Error" if path.startswith("/v2") else "ErrorBody"
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert response["content"] == {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}, (path, status)


def test_every_status_of_an_inference_is_described() -> None:
    parameters = {422}  # what tasks call a parameter has no place in the protocol: it is a 400 there
    possible = {status for kind, status in replies.STATUS.items() if issubclass(kind, errors.RequestError | errors.ServingError)}
    for model in V2_MODEL:
        described = {int(status) for status in document()["paths"][f"{model}/infer"]["post"]["responses"]}
        assert described == possible - {405, 431} - parameters | {200}


@pytest.mark.parametrize("path", ["/classify", "/classify_batch"])
def test_every_status_a_caller_can_meet_is_described(path: str) -> None:
    about_paths = {404, 405, 431}  # what the path is not, and what no endpoint sees
    possible = {
        status for kind, status in replies.STATUS.items() if issubclass(kind, errors.RequestError | errors.ServingError)
    } - about_paths
    assert {int(status) for status in document()["paths"][path]["post"]["responses"]} == possible | {200}


def test_what_a_client_may_send() -> None:
    classify, batch = (document()["paths"][path]["post"] for path in ("/classify", "/classify_batch"))
    assert set(classify["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert set(batch["requestBody"]["content"]) == {"multipart/form-data"}
    for operation, field in ((classify, "image"), (batch, "images")):
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert set(form["properties"]) == {field, "top_k", "model"}
        assert form["required"] == [field]
        assert [parameter["name"] for parameter in operation["parameters"]] == ["top_k", "model"]


@pytest.mark.parametrize(
    ("path", "status", "answer"),
    [
        ("/classify", 200, {"model": "digits", "version": "1", "predictions": [PREDICTION]}),
        ("/classify", 400, {"error": ERROR}),
        ("/classify_batch", 200, {"model": "digits", "version": "1", "results": [{"predictions": [PREDICTION]}, {"error": ERROR}]}),
    ],
)
def test_answers_fit_their_schemas(path: str, status: int, answer: dict[str, Any]) -> None:
    schema = document()["paths"][path]["post"]["responses"][str(status)]["content"]["application/json"]["schema"]
    check = jsonschema.Draft202012Validator({**schema, "components": document()["components"]})
    check.validate(answer)
    for key in answer:
        with pytest.raises(jsonschema.ValidationError):
            check.validate({**answer, key: 1})
