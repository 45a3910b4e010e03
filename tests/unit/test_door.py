"""The door over a fake gate: who is told what, for how long, and that nobody is told without being counted."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from ortserve import door as door_module
from ortserve import errors, http1, logs, replies
from ortserve.door import Door
from ortserve.http1 import head_of, whole_reply
from ortserve.metrics import Metrics
from ortserve.replies import Reply


@dataclass
class Gate:
    """Full, as long as `error` is set; what it was asked and told."""

    error: errors.ServingError | None = field(default_factory=lambda: errors.QueueFull("expected room", retry_after_s=3.2))
    asked: int = 0
    told: list[tuple[str, int]] = field(default_factory=list)

    def let_in(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def refused(self, reason: str, times: int) -> None:
        self.told.append((reason, times))


@dataclass
class Timer:
    """An event loop's, which comes when it is told to."""

    call: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def fire(self) -> None:
        if not self.cancelled:
            self.call()


class Site:
    """A door before /classify and /v2/models/x/infer; its clock stands unless it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, access_log: bool = False) -> None:
        self.gate = Gate()
        self.metrics = Metrics(service="s", version="1")
        self.now = 100.0
        clock = SimpleNamespace(monotonic=lambda: self.now, perf_counter=time.perf_counter)
        monkeypatch.setattr(door_module, "time", clock)
        monkeypatch.setattr(replies, "time", clock)
        monkeypatch.setattr(replies, "_overload", replies._Overload())
        self.door = Door(self.gate_of, self.metrics, access_log=access_log)

    def gate_of(self, method: str, path: str) -> tuple[str, Gate] | None:
        templates = {("POST", "/classify"): "/classify", ("POST", "/v2/models/x/infer"): "/v2/models/{name}/infer"}
        return None if (method, path) not in templates else (templates[method, path], self.gate)

    def turned_away(self, path: str = "/classify", request_id: str = "mine", method: str = "POST") -> tuple[Reply, str] | None:
        return self.door.turned_away(method, path, {b"x-request-id": request_id.encode()})

    def counted(self, name: str, label: str) -> dict[str, float]:
        """The samples of that name that are not 0, by that label."""
        samples = [sample for family in self.metrics.registry.collect() for sample in family.samples]
        return {sample.labels[label]: sample.value for sample in samples if sample.name == name and sample.value}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


def within(work: Callable[[], None]) -> None:
    """In an event loop, as long as what was refused may stand."""

    async def run() -> None:
        work()
        await asyncio.sleep(2 * door_module.STANDS_S)

    asyncio.run(run())


def error_of(answer: tuple[Reply, str] | None) -> Any:
    assert answer is not None
    reply, request_id = answer
    said = json.loads(reply.body)["error"]
    assert said["request_id"] == request_id
    return reply.status, said["code"], said["message"], request_id, dict(reply.headers)


def test_whoever_asks_while_a_refusal_stands_is_told_the_same_under_an_id_of_its_own_and_counted(site: Site) -> None:
    said = []

    def ask() -> None:
        said.extend([error_of(site.turned_away(request_id=mine)) for mine in ("e", "room", "third")])
        assert error_of(site.turned_away(request_id="not an id"))[3] != "not an id"

    within(ask)
    assert said == [(429, "queue_full", "expected room", mine, {b"retry-after": b"3"}) for mine in ("e", "room", "third")]
    assert site.gate.asked == 1  # which has counted that one itself
    assert site.gate.told == [("queue_full", 3)]
    assert site.counted("bentoml_service_request_total", "http_response_code") == {"429": 4}
    assert site.counted("bentoml_service_request_duration_seconds_count", "endpoint") == {"/classify": 4}


def test_who_is_told_again_before_the_parser_is_told_the_same(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "formatdate", lambda *, usegmt: "now" if usegmt else "")  # or a second might end in between
    asks = b"POST /classify HTTP/1.1\r\nContent-Length: 5\r\nX-Request-ID: %s\r\n\r\nhello"

    def ask() -> None:
        assert site.door.told_again(asks % b"mine") is None  # nothing stands yet: the gate is asked
        first = site.turned_away()
        assert site.door.standing
        assert first is not None
        said = site.door.told_again(asks % b"mine")
        assert said == (whole_reply(head_of(first[0]), first[0].body, b"mine", last=False), len(asks % b"mine"))
        other = site.door.told_again(asks % b"not an id")
        assert other is not None
        assert b"not an id" not in other[0]
        assert error_of((replace(first[0], body=other[0].partition(b"\r\n\r\n")[2]), request_id_in(other[0])))[:3] == error_of(first)[:3]
        assert site.door.told_again((asks % b"mine").replace(b"/classify", b"/other")) is None
        assert site.door.told_again((asks % b"mine").replace(b"POST", b"GET")) is None
        assert site.door.told_again(b"POST /classify HTTP/1.1\r\nContent-Length: 5\r\n") is None
        site.now += 2 * door_module.STANDS_S
        assert site.door.told_again(asks % b"mine") is None

    within(ask)
    assert not site.door.standing
    assert site.gate.asked == 1
    assert site.gate.told == [("queue_full", 2)]
    assert site.counted("bentoml_service_request_total", "http_response_code") == {"429": 3}


def request_id_in(reply: bytes) -> str:
    found = re.search(rb"x-request-id: (\S+)", reply)
    assert found is not None
    return found[1].decode()


def test_a_refusal_stands_no_longer_than_it_may(site: Site) -> None:
    def ask() -> None:
        site.turned_away()
        site.turned_away()
        site.gate.error = None
        site.now += 0.9 * door_module.STANDS_S
        assert site.turned_away() is not None
        site.now += 0.2 * door_module.STANDS_S
        assert site.turned_away() is None
        assert site.gate.told == [("queue_full", 2)]

    within(ask)
    assert site.gate.told == [("queue_full", 2)]  # once


def test_the_end_of_one_refusal_is_not_the_end_of_the_next(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    timers: list[Timer] = []

    def call_later(_: float, call: Callable[..., object], *arguments: str) -> Timer:
        timers.append(Timer(lambda: call(*arguments)))
        return timers[-1]

    loop = SimpleNamespace(call_later=call_later)
    monkeypatch.setattr(door_module, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))
    site.turned_away()
    site.now += 2 * door_module.STANDS_S  # the loop was busy: its time is over, its timer did not come
    site.turned_away()
    assert len(timers) == 2
    timers[0].fire()
    site.turned_away()
    assert site.gate.asked == 2
    timers[1].fire()
    assert site.gate.told == [("queue_full", 1)]


@pytest.mark.parametrize(("drain_s", "stands_s"), [(0.001, 0.00001), (0.1, 0.001), (0.2, 0.002), (3.2, 0.005)])
def test_a_refusal_stands_for_a_hundredth_of_the_time_in_which_the_queue_drains(site: Site, drain_s: float, stands_s: float) -> None:
    site.gate.error = errors.QueueFull("expected room", retry_after_s=drain_s)

    def ask() -> None:
        for moment, asked in ((0.0, 1), (0.99 * stands_s, 1), (1.01 * stands_s, 2)):
            site.now = 100.0 + moment
            site.turned_away()
            assert site.gate.asked == asked

    within(ask)


def test_one_path_says_nothing_of_another(site: Site) -> None:
    def ask() -> None:
        said = site.turned_away("/v2/models/x/infer")
        assert said is not None
        assert json.loads(said[0].body) == {"error": "expected room"}  # the protocol's shape, which has no id
        assert site.turned_away("/v2/models/x/infer") == (said[0], "mine")
        assert site.turned_away("/classify") is not None
        assert site.gate.asked == 2
        assert site.turned_away("/v2/models/unknown/infer") is None
        assert site.turned_away("/take") is None
        assert site.turned_away("/nowhere") is None
        assert site.turned_away("/classify", method="GET") is None  # answered with 405, in the usual way

    within(ask)
    assert site.counted("bentoml_service_request_total", "endpoint") == {"/v2/models/{name}/infer": 2, "/classify": 1}


@pytest.mark.parametrize("error", [errors.ShuttingDown("stopping"), errors.RunnerUnavailable("gone")])
def test_only_want_of_room_stands(site: Site, error: errors.ServingError) -> None:
    site.gate.error = error

    def ask() -> None:
        for _ in range(3):
            assert error_of(site.turned_away())[:3] == (503, error.code, str(error))

    within(ask)
    assert site.gate.asked == 3


def test_where_each_has_a_line_in_the_access_log_each_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(monkeypatch, access_log=True)
    caplog.set_level(logging.INFO)

    def ask() -> None:
        for _ in range(3):
            site.turned_away()

    within(ask)
    lines = [record.getMessage().split()[:3] for record in caplog.records if record.name == logs.ACCESS]
    assert lines == [["POST", "/classify", "429"]] * 3
    assert site.gate.asked == 3


def test_the_line_of_an_overload_knows_of_those_who_were_told_the_same(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def ask() -> None:
        for _ in range(5):
            site.turned_away()
        site.now += replies._Overload.EVERY_S
        site.turned_away()

    within(ask)
    assert [record.getMessage() for record in caplog.records] == [
        "/classify: 429 queue_full: expected room",
        "/classify: 429 queue_full: expected room, and 4 more before it",
    ]


def test_refusals_leave_the_collector_nothing(site: Site) -> None:
    def ask() -> None:
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                site.gate.error = errors.QueueFull("expected room")
                site.turned_away()
                site.now += 2 * door_module.STANDS_S
            site.gate.error = None
            assert gc.collect() < 100
        finally:
            gc.enable()

    within(ask)
