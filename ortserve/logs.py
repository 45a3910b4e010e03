"""Log lines on standard error, as text or JSON, each with the id of the request it belongs to."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from ortserve import profile

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request being answered in this context; "-" outside of one."""

ACCESS = "ortserve.access"
_access = logging.getLogger(ACCESS)
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_ID_BYTES = 16
_IDS_PER_READ = 256


def configure(settings: profile.Logging) -> None:
    """Make every logger of this process write to standard error as the profile says. Calling it again changes nothing.

    BentoML and its arbiter configure their own handlers, on "bentoml", "uvicorn.error", "circus" and the root logger, when a process
    starts (`bentoml/_internal/log.py`): those go, and their lines come through ours, once.
    """
    logging.config.dictConfig(dict_config(settings))
    logging.captureWarnings(True)


def dict_config(settings: profile.Logging) -> dict[str, Any]:
    """What `configure` sets, for `logging.config.dictConfig`.

    In the parent process BentoML hands its own such dict to the arbiter, which applies it after everything of ours has run: there this
    one must take its place.
    """
    level = settings.level.upper()
    library_level = max(logging.WARNING, logging.getLevelNamesMapping()[level])  # what libraries say below a warning helps nobody here
    ours: dict[str, Any] = {"level": level, "handlers": [], "propagate": True}
    library: dict[str, Any] = {"level": library_level, "handlers": [], "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"context": {"()": _Context}},
        "formatters": {"line": {"()": _JsonLines if settings.format == "json" else _TextLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["context"]}},
        "root": {"level": library_level, "handlers": ["stderr"]},
        "loggers": {
            "ortserve": ours,
            "bentoml": ours.copy(),
            **{name: library.copy() for name in ("uvicorn", "uvicorn.error", "circus")},
            # Ours is the access log. Where this one has no handler, uvicorn does not put its line together.
            "uvicorn.access": {"handlers": [], "propagate": False},
            ACCESS: {"level": logging.INFO if settings.access_log else logging.CRITICAL + 1, "propagate": True},
        },
    }


def access(method: str, endpoint: str, status: int, seconds: float, sent_bytes: int) -> None:
    """Write one access line, where the profile wants them; `endpoint` is the route template, never the path a caller sent."""
    duration_ms = round(seconds * 1000, 3)
    _access.info(
        "%s %s %d %.1f ms %d B",
        method,
        endpoint,
        status,
        duration_ms,
        sent_bytes,
        extra={
            "fields": {"method": method, "endpoint": endpoint, "status": status, "duration_ms": duration_ms, "response_bytes": sent_bytes}
        },
    )


def valid_request_id(text: str) -> bool:
    """True for 1 to 128 characters of A-Z, a-z, 0-9, dot, underscore and hyphen: safe in a header, a log line and a file name."""
    return _VALID_ID.fullmatch(text) is not None


def request_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The caller's own, of a request's `x-request-id`, where it can be one; else a new one."""
    return valid_or_new(headers.get(b"x-request-id", b""))


def valid_or_new(wanted: bytes) -> str:
    """What a caller wrote as its request's id, where it can be one; else a new one."""
    text = wanted.decode("latin-1")
    return text if valid_request_id(text) else new_request_id()


_pool: list[str] = []  # ids drawn and not yet handed out
os.register_at_fork(after_in_child=_pool.clear)  # a child must not hand out its parent's


def new_request_id() -> str:
    """A fresh random id: 32 hex digits (128 bits), from any thread.

    One read of the system's source serves many ids: a read per request would cost a system call each.
    """
    try:
        return _pool.pop()
    except IndexError:
        width = 2 * _ID_BYTES
        text = os.urandom(_ID_BYTES * _IDS_PER_READ).hex()
        fresh = [text[start : start + width] for start in range(0, len(text), width)]
        mine = fresh.pop()
        _pool.extend(fresh)
        return mine


def _span_ids() -> tuple[str, str] | None:
    """Trace and span id of the active span as hex; None where no span is active or OpenTelemetry was never imported."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None


class _Context(logging.Filter):
    """Puts the request id, and trace and span id where a span is active, into every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        if (ids := _span_ids()) is not None:
            record.trace_id, record.span_id = ids
        return True


def _timestamp(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What could end a line, move the cursor, or turn the direction of what follows: shown as its escape instead.
_CONTROL = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}


class _TextLines(logging.Formatter):
    """One line per record; control characters of a message are shown escaped, so that no caller can write a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().translate(_CONTROL)
        trace = f" trace={record.trace_id}" if hasattr(record, "trace_id") else ""
        line = f"{_timestamp(record)} {record.levelname} {record.name} [{record.request_id}]{trace} {message}"  # type: ignore[attr-defined]
        if record.exc_info:
            line += "\n" + _indented(self.formatException(record.exc_info))
        if record.stack_info:
            line += "\n" + _indented(record.stack_info)
        return line


def _indented(trace: str) -> str:
    """A stack trace shifted right: text inside it, which a caller may have chosen, cannot pass for a record."""
    return "\n".join("    " + line.translate(_CONTROL) for line in trace.split("\n"))


class _JsonLines(logging.Formatter):
    """One JSON object per record: timestamp, level, logger, message, request_id; trace_id, span_id and exception where there are.

    Of what a caller of the logger adds, only a dict named `fields` is shown: python-json-logger would merge every attribute that any
    library hangs on a record, under names that could hide ours.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("request_id", "trace_id", "span_id"):
            if hasattr(record, name):
                line[name] = getattr(record, name)
        for name, value in getattr(record, "fields", {}).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)  # ASCII only: no line separator and no lone surrogate gets through
