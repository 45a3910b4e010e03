"""What the user asked for: the command line of `build_model.py`, parsed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ortserve.manifest import Background, BoxFormat, LabelsPerBox, Layout, Precision, ScoreActivation

Task = Literal["image-classification", "object-detection", "feature-extraction", "text-classification"]
ResizeMode = Literal["crop", "stretch", "pad", "letterbox"]
BoxScale = Literal["pixels", "relative"]
Suppression = Literal["graph", "service"]
ChannelOrder = Literal["rgb", "bgr"]
Pooling = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken"]
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Options:
    """One build. None means: what the source itself says, else the default that `--help` names."""

    source: str
    task: Task | None = None
    name: str | None = None
    version: str | None = None
    weights: str | None = None
    seed: int = 0
    labels: Path | None = None
    input_size: tuple[int, int] | None = None  # height, width in pixels
    mean: Triple | None = None
    std: Triple | None = None
    resize_mode: ResizeMode | None = None
    channel_order: ChannelOrder | None = None
    detection_layout: Layout | None = None
    box_format: BoxFormat | None = None
    box_scale: BoxScale | None = None
    background_class: Background | None = None
    score_activation: ScoreActivation | None = None
    labels_per_box: LabelsPerBox | None = None
    nms: Suppression | None = None
    max_detections: int | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    precisions: tuple[Precision, ...] = ("fp32",)
    calibration: Path | None = None
    opset: int | None = None
    tolerance: float | None = None  # fp32 only: the limit on logits and probabilities
    min_agreement_fp16: float | None = None  # 0..1
    min_agreement_int8: float | None = None  # 0..1
    max_batch: int = 32
