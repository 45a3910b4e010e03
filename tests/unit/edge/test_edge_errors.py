"""Every error has its status and the one shape, here and below /v2, and nothing of the inside in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from ortserve import errors, replies
from ortserve.edge import Route
from tests.site import SECRET, Site, hello, raising


def an_error(kind: type[errors.OrtServeError]) -> errors.OrtServeError:
    return errors.MethodNotAllowed("PUT", "GET") if kind is errors.MethodNotAllowed else kind("expected one thing, got another")


@pytest.mark.parametrize("kind", replies.STATUS)
def test_every_error_has_its_status_and_the_one_shape(
    kind: type[errors.OrtServeError], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_overload", replies._Overload())  # whatever had the line of this second
    error = an_error(kind)
    error.__cause__ = ValueError(SECRET)
    answer = Site(extra=[Route("GET", "/fails", raising(error))]).ask("/fails")
    assert answer.status == replies.STATUS[kind]
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    told = isinstance(error, errors.RequestError | errors.ServingError)
    assert answer.error["code"] == (kind.code if told else "internal")
    assert (answer.error["message"] == str(error)) == told
    assert SECRET not in answer.body.decode()
    record = next(record for record in caplog.records if SECRET in record.getMessage())
    assert record.request_id == answer.error["request_id"]  # type: ignore[attr-defined]


def test_every_error_a_caller_can_cause_has_a_status_of_its_own_or_of_its_base() -> None:
    def tree(kind: type[errors.OrtServeError]) -> Iterator[type[errors.OrtServeError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from tree(child)

    for kind in tree(errors.RequestError):
        assert 400 <= replies.status_of(an_error(kind)) < 500
    for kind in tree(errors.ServingError):
        assert replies.status_of(an_error(kind)) in (429, 500, 503, 504)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 7.4])
def test_a_full_queue_says_when_to_come_back(seconds: float) -> None:
    answer = Site(extra=[Route("GET", "/full", raising(errors.QueueFull("full", retry_after_s=seconds)))]).ask("/full")
    assert (answer.status, answer.headers["retry-after"]) == (429, str(max(1, round(seconds))))


@pytest.mark.parametrize("error", [RuntimeError(SECRET), errors.ModelError(SECRET), KeyError(SECRET), MemoryError(SECRET)])
def test_what_nobody_expected_is_a_500_without_details(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(extra=[Route("GET", "/fails", raising(error))])
    answer = site.ask("/fails")
    assert (answer.status, answer.error["code"]) == (500, "internal")
    assert SECRET not in answer.body.decode()
    assert "onnxruntime" not in answer.body.decode()
    record = next(record for record in caplog.records if record.exc_info)
    assert record.request_id == answer.error["request_id"]  # type: ignore[attr-defined]
    assert site.counted() == {("/fails", "500"): 1}
    assert site.in_progress() == 0


def test_refusals_for_want_of_room_have_one_line_a_second(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(replies, "_overload", replies._Overload())
    monkeypatch.setattr(replies.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    for second in (100.0, 100.5, 100.9, 101.0, 102.5):
        now[0] = second
        replies.log_failure("/classify", errors.QueueFull("expected room"))
    replies.log_failure("/classify", errors.DeadlineExceeded("late"))  # any other failure has its own
    assert [record.getMessage() for record in caplog.records] == [
        "/classify: 429 queue_full: expected room",
        "/classify: 429 queue_full: expected room, and 2 more before it",
        "/classify: 429 queue_full: expected room",
        "/classify: 504 deadline_exceeded: late",
    ]


# --- below /v2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.ShapeMismatch("wrong"), 400, {}),
        (errors.PayloadTooLarge("large"), 413, {}),
        (errors.QueueFull("full", retry_after_s=3.2), 429, {"retry-after": "3"}),
        (errors.ShuttingDown("stopping"), 503, {}),
        (errors.RunnerUnavailable("gone", retry_after_s=1), 503, {"retry-after": "1"}),
        (errors.DeadlineExceeded("late"), 504, {}),
        (ValueError("/secret/path"), 500, {}),
    ],
)
def test_errors_of_the_protocol_have_its_shape_and_our_statuses(error: Exception, status: int, headers: dict[str, str]) -> None:
    site = Site(extra=[Route("POST", "/v2/models/{name}/infer", raising(error))])
    answer = site.ask("/v2/models/a/infer", "POST")
    assert answer.status == status
    said = json.loads(answer.body)
    assert said.keys() == {"error"}
    assert said["error"] == (str(error) if status != 500 else said["error"])
    assert "secret" not in said["error"]
    assert headers.items() <= answer.headers.items()
    assert answer.headers["x-request-id"]
    assert site.counted() == {("/v2/models/{name}/infer", str(status)): 1}


@pytest.mark.parametrize(("path", "method", "status"), [("/v2", "GET", 404), ("/v2/x", "GET", 404), ("/v2/models/a/infer", "GET", 405)])
def test_also_where_no_handler_was_asked(path: str, method: str, status: int) -> None:
    site = Site(extra=[Route("POST", "/v2/models/{name}/infer", hello)])
    answer = site.ask(path, method)
    assert (answer.status, json.loads(answer.body).keys()) == (status, {"error"})
    assert isinstance(json.loads(answer.body)["error"], str)
    assert site.ask("/v2x").error["code"] == "not_found"
