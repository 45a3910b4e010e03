"""OpenTelemetry spans over OTLP/HTTP. Off: `configure` returns None and nothing of the SDK is imported.

Where spans go is set by the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, ..._HEADERS, ..._TIMEOUT, ..._CERTIFICATE,
OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*). Whether a trace is recorded is its sender's decision where a `traceparent` header came with the
request (W3C Trace Context), else a draw at the profile's `sample_rate`. Names and attributes follow OpenTelemetry's semantic
conventions for HTTP server spans, 1.23 and later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ortserve import profile
from ortserve.errors import ProfileError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan

# Methods of RFC 9110 and PATCH; anything else a caller writes is "_OTHER", or span names would grow without bound.
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_PROBES = frozenset({"/healthz", "/livez", "/readyz", "/metrics"})  # asked every few seconds by machines: no trace worth its place
_HEADERS = (b"traceparent", b"tracestate")


def configure(settings: profile.Tracing, *, service_name: str, service_version: str) -> Tracer | None:
    """A tracer that sends spans in the background, or None where the profile does not ask for tracing.

    One per worker process, after any fork. Raises ProfileError where the exporter is not installed or OTEL_BSP_* makes no sense; any
    other variable that the exporter cannot use it reports in the log, and takes the default instead.
    """
    if not settings.enabled:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Tracer(OTLPSpanExporter(), sample_rate=settings.sample_rate, service_name=service_name, service_version=service_version)
    except ImportError as error:
        raise ProfileError(
            f"the profile turns tracing on, but {error.name} is not installed: install opentelemetry-exporter-otlp-proto-http, "
            "or set tracing.enabled to false"
        ) from None
    except ValueError as error:  # of OTEL_BSP_*: the others it takes are reported in the log and replaced by their defaults
        raise ProfileError(f"the profile turns tracing on, but an OTEL_* variable cannot be used: {error}") from None


class Tracer:
    """Makes server spans and sends them in batches from a thread of its own. Close it to send what waits."""

    def __init__(self, exporter: SpanExporter, *, sample_rate: float, service_name: str, service_version: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over what we name ourselves: an operator set them on purpose.
        ours = Resource({"service.name": service_name, "service.version": service_version})
        self._provider: TracerProvider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(sample_rate), resource=ours.merge(_without_default_name(Resource.create()))
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ortserve", service_version)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def server_span(self, scope: MutableMapping[str, Any], *, route: str) -> Iterator[Span]:
        """The span of one HTTP request, active within the block; a child of the caller's `traceparent` where there is one.

        `scope` is ASGI's; `route` the route template, or any text without a leading slash where no route matched.
        """
        from opentelemetry.trace import INVALID_SPAN, SpanKind

        if route in _PROBES:
            yield Span(self, INVALID_SPAN)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes = {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope.get("scheme", "http")}
        shown = "HTTP" if method == "_OTHER" else method
        if route.startswith("/"):
            attributes["http.route"] = route
            shown = f"{shown} {route}"
        carrier = {key.decode(): value.decode("latin-1") for key, value in scope["headers"] if key in _HEADERS}
        parent = self._propagator.extract(carrier)
        with self._tracer.start_as_current_span(shown, parent, SpanKind.SERVER, attributes) as span:
            yield Span(self, span)

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, for at most that long, then stop."""
        self._provider.force_flush(int(timeout_s * 1000))
        self._provider.shutdown()


class Span:
    """The span of one HTTP request."""

    def __init__(self, tracer: Tracer, span: OtelSpan) -> None:
        self._tracer = tracer._tracer
        self._span = span

    @property
    def recording(self) -> bool:
        """False where this request is not sampled: nothing given to it goes anywhere."""
        return self._span.is_recording()

    def set_status(self, status: int) -> None:
        """Note the HTTP status of the answer; 500 and above mark the span as failed, as the conventions say of servers."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))

    def record(self, name: str, start_ns: int, end_ns: int, attributes: Mapping[str, str | int | float | bool] | None = None) -> None:
        """Add a child that ran from `start_ns` to `end_ns`, in nanoseconds since 1970 (`time.time_ns()`), known afterwards."""
        if not self._span.is_recording():
            return
        from opentelemetry.trace import set_span_in_context

        child = self._tracer.start_span(name, set_span_in_context(self._span), attributes=dict(attributes or {}), start_time=start_ns)
        child.end(end_ns)

    def record_stages(self, stages: Mapping[str, float]) -> None:
        """Add a child for each stage, in order, back to back and ending now: name to duration in seconds."""
        end = time.time_ns()
        start = end - sum(int(seconds * 1e9) for seconds in stages.values())
        for name, seconds in stages.items():
            stop = start + int(seconds * 1e9)
            self.record(name, start, stop)
            start = stop


def _without_default_name(resource: Any) -> Any:
    """What the environment says of this service, less the "unknown_service" that stands in where it says nothing."""
    from opentelemetry.sdk.resources import Resource

    attributes = {
        key: value for key, value in resource.attributes.items() if not (key == "service.name" and str(value).startswith("unknown_service"))
    }
    return Resource(attributes, resource.schema_url)
