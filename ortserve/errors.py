"""Every exception of the project, in one tree. Knows no HTTP, imports nothing.

The flow that raises them:

    build_model.py ──> SourceError, ExportError, CalibrationError, ParityError      (BuildError)
    start-up       ──> ProfileError, ModelError, ProviderError                      (StartupError)
    a request      ──> the sender's fault: RequestError and its children
                   ──> the service's state: QueueFull, DeadlineExceeded, ShuttingDown, RunnerUnavailable, InferenceError (ServingError)
    two processes  ──> FrameError, which ends their stream and reaches no caller
    tuning         ──> TuneError

`code` is the stable, machine-readable name a caller can branch on. The message says what was expected, what came and the
remedy. For RequestError and ServingError the message travels to the caller: it names no path and quotes no library.
"""

from __future__ import annotations

from typing import ClassVar


class OrtServeError(Exception):
    """The root: catch this to catch everything the project raises on purpose."""

    code: ClassVar[str] = "internal"


# --- build -----------------------------------------------------------------------------------------------------------


class BuildError(OrtServeError):
    """A package could not be built; nothing was saved."""

    code = "build_failed"


class SourceError(BuildError):
    """The model, its weights, its labels or an option of the command line cannot be used."""

    code = "bad_source"


class ExportError(BuildError):
    """The model could not be turned into an ONNX graph that the service can run."""

    code = "export_failed"


class CalibrationError(BuildError):
    """A precision needs calibration pictures that are missing or too few."""

    code = "calibration_needed"


class ParityError(BuildError):
    """The stored file does not answer as its reference does."""

    code = "parity_failed"


# --- start-up --------------------------------------------------------------------------------------------------------


class StartupError(OrtServeError):
    """The service cannot start; shown as one line, exit status 1."""

    code = "startup_failed"


class ProfileError(StartupError):
    """The profile cannot be found, read or believed."""

    code = "bad_profile"


class ModelError(StartupError):
    """The model package is missing, damaged, or not one this service may use."""

    code = "bad_model"


class GraphRefused(ModelError):
    """The model cannot be run as CUDA graphs, which the profile asks for."""

    code = "no_cuda_graph"


class ProviderError(StartupError):
    """The execution provider the profile asks for is not there, or the session did not take it."""

    code = "provider_unavailable"


class PortError(StartupError):
    """A port the profile asks for cannot be opened."""

    code = "port_unavailable"


# --- requests: the sender's fault ------------------------------------------------------------------------------------


class RequestError(OrtServeError):
    """The request cannot be answered as it was sent."""

    code = "bad_request"


class InvalidImage(RequestError):
    """The bytes are not a picture that can be decoded whole."""

    code = "invalid_image"


class UnsupportedMediaType(RequestError):
    """The body or the picture is of a kind this endpoint does not read."""

    code = "unsupported_media_type"


class PayloadTooLarge(RequestError):
    """More bytes than the profile's limit."""

    code = "payload_too_large"


class ImageTooLarge(RequestError):
    """More pixels than the profile's limit, by the picture's own header."""

    code = "image_too_large"


class InvalidParameter(RequestError):
    """A parameter is not of its type or out of its range."""

    code = "invalid_parameter"


class NotFound(RequestError):
    """No such path or model."""

    code = "not_found"


class MethodNotAllowed(RequestError):
    """The path exists; not with this method. `allowed` lists those it takes, as the header Allow does."""

    code = "method_not_allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"expected {allowed} for this path, got {method[:16]}")
        self.allowed = allowed


class HeadersTooLarge(RequestError):
    """The request line and headers are longer than the service takes."""

    code = "headers_too_large"


class ShapeMismatch(RequestError):
    """A tensor is not of the shape or dtype the model takes."""

    code = "shape_mismatch"


class RequestTimeout(RequestError):
    """The body did not arrive in time."""

    code = "request_timeout"


# --- requests: the service's state -----------------------------------------------------------------------------------


class ServingError(OrtServeError):
    """The request was right; the service could not answer it now."""

    code = "unavailable"


class QueueFull(ServingError):
    """As many rows wait as the profile allows. `retry_after_s` is the time the queue needs to drain, in seconds."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ServingError):
    """The answer would have come after the request's deadline; no compute was spent on it past that point."""

    code = "deadline_exceeded"


class ShuttingDown(ServingError):
    """The service is stopping and takes nothing new."""

    code = "shutting_down"


class InferenceError(ServingError):
    """The session failed on this request's rows, alone."""

    code = "inference_failed"


class RunnerUnavailable(ServingError):
    """The process that holds the model is not there, or was lost with this request's rows. `retry_after_s` is when it may be back."""

    code = "runner_unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# --- between an API worker and its runner ----------------------------------------------------------------------------


class FrameError(OrtServeError):
    """The other process sent what is no frame, or one it may not send now."""

    code = "bad_frame"


# --- tuning ----------------------------------------------------------------------------------------------------------


class TuneError(OrtServeError):
    """`python -m ortserve.tune` cannot measure what it was asked to."""

    code = "tune_failed"
