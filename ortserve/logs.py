"""Log lines on standard error, as text or JSON, each with the id of the request it belongs to."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from ortserve import profile

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request being answered in this context; "-" outside of one."""

ACCESS = "ortserve.access"
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_ID_BYTES = 16
_IDS_PER_READ = 256


def configure(settings: profile.Logging) -> None:
    """Make every logger of this process write to standard error as the profile says. Call it in the parent and in every worker.

    Calling it again replaces what it did before. BentoML configures its own handlers on "bentoml", "uvicorn.error", "circus"
    and the root logger when a process starts (`bentoml/_internal/log.py`): those go, their lines come through ours, once.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if settings.format == "json" else _TextLines())
    handler.addFilter(_add_context)
    level = settings.level.upper()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("ortserve", "bentoml"):
        _inherit(name, level)
    # Libraries speak up only from WARNING: uvicorn's access log and circus's process chatter are not ours to show.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "circus"):
        _inherit(name, max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger(ACCESS).setLevel(logging.INFO if settings.access_log else logging.CRITICAL + 1)
    logging.captureWarnings(True)


def _inherit(name: str, level: str | int) -> None:
    logger = logging.getLogger(name)
    logger.handlers.clear()
    logger.propagate = True
    logger.disabled = False
    logger.setLevel(level)


def access_log_enabled() -> bool:
    """True where the profile asked for one line per request."""
    return logging.getLogger(ACCESS).isEnabledFor(logging.INFO)


def access(method: str, endpoint: str, status: int, duration_ms: float, response_bytes: int) -> None:
    """Write one access line; `endpoint` is the route template, never the path a caller sent."""
    logging.getLogger(ACCESS).info(
        "%s %s %d %.1f ms %d B",
        method,
        endpoint,
        status,
        duration_ms,
        response_bytes,
        extra={
            "fields": {
                "method": method,
                "endpoint": endpoint,
                "status": status,
                "duration_ms": round(duration_ms, 3),
                "response_bytes": response_bytes,
            }
        },
    )


def valid_request_id(text: str) -> bool:
    """True for 1 to 128 characters of A-Z, a-z, 0-9, dot, underscore and hyphen: safe in a header, a log line and a file name."""
    return _VALID_ID.fullmatch(text) is not None


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


def _add_context(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    if (ids := _span_ids()) is not None:
        record.trace_id, record.span_id = ids
    return True


def _timestamp(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}


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
