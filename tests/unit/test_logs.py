"""Log lines: one per record whatever a caller writes, one format for every library, the request's id in each."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ortserve import logs, profile

ROOT = Path(__file__).parents[2]
HOSTILE = "harmless\r\n2026-01-01T00:00:00.000Z ERROR ortserve [-] forged\x1b[2J\x85\u2028\u202e"


def written(settings: profile.Logging, message: str, *arguments: object, **options: object) -> str:
    """What the handler of that profile writes for one record, without touching this process's loggers."""
    config = logs.dict_config(settings)
    formatter, context = config["formatters"]["line"]["()"](), config["filters"]["context"]["()"]()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(context)
    logger = logging.Logger("ortserve.test")
    logger.addHandler(handler)
    logger.info(message, *arguments, **options)  # type: ignore[arg-type]
    return stream.getvalue()


TEXT = profile.Logging(format="text")
JSON = profile.Logging(format="json")


def test_a_text_line_names_time_level_logger_and_request() -> None:
    token = logs.request_id.set("abc-1")
    line = written(TEXT, "warm after %d ms", 12)
    logs.request_id.reset(token)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO ortserve\.test \[abc-1\] warm after 12 ms\n", line)


def test_a_json_line_holds_the_same() -> None:
    line = json.loads(written(JSON, "warm after %d ms", 12))
    assert line | {"timestamp": ""} == {
        "timestamp": "",
        "level": "info",
        "logger": "ortserve.test",
        "message": "warm after 12 ms",
        "request_id": "-",
    }
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() is not None  # RFC 3339


@given(st.text())
def test_no_text_makes_a_second_line(text: str) -> None:
    assert len(written(TEXT, "%s", text + HOSTILE).splitlines()) == 1
    line = written(JSON, "%s", text + HOSTILE)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == text + HOSTILE


def test_a_trace_is_in_the_line_or_below_it_indented() -> None:
    def fail() -> None:
        raise ValueError(HOSTILE)

    lines: list[str] = []
    for settings in (TEXT, JSON):
        try:
            fail()
        except ValueError:
            lines.append(written(settings, "failed", exc_info=True))
    text, parsed = lines[0].splitlines(), json.loads(lines[1])
    assert text[0].endswith("failed")
    assert all(line.startswith("    ") for line in text[1:])
    assert "ValueError" in text[-2] + text[-1]
    assert parsed["message"] == "failed"
    assert "ValueError: harmless" in parsed["exception"]


def test_extra_fields_cannot_hide_ours() -> None:
    line = json.loads(written(JSON, "said", extra={"fields": {"message": "forged", "status": 200, "odd": {1, 2} and object}}))
    assert line["message"] == "said"
    assert line["status"] == 200
    assert "object" in line["odd"]


def run(code: str) -> list[str]:
    """The lines on standard error of a fresh Python that runs that code; nothing may come on standard output."""
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "True", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


SPEAK = """
import logging, warnings
from bentoml._internal.log import configure_server_logging, SERVER_LOGGING_CONFIG
from ortserve import logs, profile
settings = profile.Logging(format="json", level="info", access_log={access})
{configure}
for name in ("ortserve.model", "bentoml.serve", "bentoml", "uvicorn.error", "circus", "somebody.else"):
    logging.getLogger(name).debug("debug of " + name)
    logging.getLogger(name).info("info of " + name)
    logging.getLogger(name).warning("warning of " + name)
logs.access("GET", "/models/{{name}}", 200, 0.0125, 345)
warnings.warn("mind this")
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    "configure",
    [
        "configure_server_logging(); logs.configure(settings); logs.configure(settings)",  # a worker: BentoML first, then ours
        "SERVER_LOGGING_CONFIG.clear(); SERVER_LOGGING_CONFIG.update(logs.dict_config(settings)); configure_server_logging()",  # the parent
    ],
    ids=["worker", "parent"],
)
def test_every_library_speaks_through_our_handler_once(configure: str) -> None:
    lines = [json.loads(line)["message"] for line in run(SPEAK.format(access=False, configure=configure)) if line.startswith("{")]
    assert [line for line in lines if "mind this" not in line] == [
        "info of ortserve.model",
        "warning of ortserve.model",
        "info of bentoml.serve",
        "warning of bentoml.serve",
        "info of bentoml",
        "warning of bentoml",
        "warning of uvicorn.error",
        "warning of circus",
        "warning of somebody.else",
    ]


@pytest.mark.integration
def test_the_access_line_comes_only_when_asked_for() -> None:
    lines = [json.loads(line) for line in run(SPEAK.format(access=True, configure="logs.configure(settings)"))]
    access = [line for line in lines if line["logger"] == logs.ACCESS]
    assert len(access) == 1
    assert access[0]["message"] == "GET /models/{name} 200 12.5 ms 345 B"
    fields = {"method": "GET", "endpoint": "/models/{name}", "status": 200, "duration_ms": 12.5, "response_bytes": 345}
    assert fields.items() <= access[0].items()
    assert any("mind this" in line["message"] for line in lines)


@pytest.mark.integration
def test_uvicorn_puts_no_access_line_of_its_own_together() -> None:
    configure = "configure_server_logging(); logs.configure(settings)"
    said = "logging.getLogger('ortserve').info(logging.getLogger('uvicorn.access').hasHandlers())"
    lines = run(SPEAK.format(access=False, configure=configure) + said)
    assert json.loads(lines[-1])["message"] == "False"


@pytest.mark.parametrize("text", ["a", "A-b_c.9", "x" * 128])
def test_a_safe_request_id_is_kept(text: str) -> None:
    assert logs.valid_request_id(text)


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a\n", "a\r\nX-Evil: 1", "é", "٣", 'a"', "a/b", "a;b", "\x00"])
def test_any_other_is_not(text: str) -> None:
    assert not logs.valid_request_id(text)


def test_fresh_ids_are_valid_and_never_repeat_over_threads() -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = [one for many in pool.map(lambda _: [logs.new_request_id() for _ in range(1000)], range(16)) for one in many]
    assert len(set(ids)) == 16_000
    assert all(logs.valid_request_id(one) and len(one) == 32 for one in ids)


@pytest.mark.integration
def test_a_forked_child_draws_ids_of_its_own() -> None:
    code = """
import os, sys
from ortserve import logs
logs.new_request_id()
if os.fork() == 0:
    print(logs.new_request_id(), file=sys.stderr)
else:
    os.wait()
    print(logs.new_request_id(), file=sys.stderr)
"""
    child, parent = run(code)
    assert child != parent
