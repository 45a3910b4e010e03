"""The answers as types: what `/docs.json` describes and `bentoml.SyncHTTPClient` reads. The edge writes the same JSON by itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Prediction(BaseModel):
    """One class and how sure the model is of it."""

    class_id: int = Field(description="Index of the class in the model's labels.")
    label: str
    score: float = Field(description="Probability, 0 to 1.")


class Classification(BaseModel):
    """The answer to one picture."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    version: str
    predictions: list[Prediction] = Field(description="Best first.")


class Box(BaseModel):
    """Two corners in pixels of the picture as it was sent, upright; 0, 0 is its upper left corner."""

    x1: float
    y1: float
    x2: float
    y2: float


class FoundObject(BaseModel):
    """One object: what it is, how sure the model is of it, and where it is."""

    class_id: int = Field(description="Index of the class in the model's labels.")
    label: str
    score: float = Field(description="0 to 1.")
    box: Box


class ImageSize(BaseModel):
    """Of the picture as it was sent, upright."""

    width: int
    height: int


class Detection(BaseModel):
    """The answer to one picture."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    version: str
    image: ImageSize
    detections: list[FoundObject] = Field(description="Best first.")


class ErrorDetail(BaseModel):
    """What went wrong, in the one shape every error has."""

    code: str = Field(description="Stable and machine-readable.")
    message: str = Field(description="What was expected, what came, and the remedy.")
    request_id: str = Field(description="Also in the header X-Request-ID and in the service's log.")


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class BatchResult(BaseModel):
    """One picture of a batch: `predictions` or `error`."""

    predictions: list[Prediction] | None = None
    error: ErrorDetail | None = None


class BatchClassification(BaseModel):
    """The answer to many pictures, in the order they were sent."""

    model: str
    version: str
    results: list[BatchResult]


class DetectionResult(BaseModel):
    """One picture of a batch: `image` and `detections`, or `error`."""

    image: ImageSize | None = None
    detections: list[FoundObject] | None = None
    error: ErrorDetail | None = None


class BatchDetection(BaseModel):
    """The answer to many pictures, in the order they were sent."""

    model: str
    version: str
    results: list[DetectionResult]
