"""Torchvision's one-stage detectors by name: backbone, head, anchors and box coder are theirs; decoding and suppression are ours.

Their own forward takes a list of pictures of any size, resizes each and branches on what it finds: it cannot be exported with a free
batch. What lies between the resizing and the thresholds can, on an input of one size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from ortserve.errors import SourceError
from ortserve.export.loaded import Loaded
from ortserve.export.options import Options
from ortserve.export.preprocessing import decide_detector
from ortserve.export.torch_detector import from_detector
from ortserve.manifest import Source

# Their models were trained on sides of 800 to 1333; this is a fifth of the work, and what YOLO's are compared at.
SIDE = 640


def from_torchvision(model: Any, labels: tuple[str, ...], source: Source, options: Options) -> Loaded:
    """The model, its labels those of its score columns, the background's among them.

    Raises SourceError for a model of two stages.
    """
    if not isinstance(model, SSD | RetinaNet | FCOS):
        raise SourceError(
            f"{source.reference} is a detector of two stages: the second looks at proposals, another number of them on every picture, so "
            "its graph has no fixed outputs. Choose one of one stage (ssdlite320_mobilenet_v3_large, ssd300_vgg16, retinanet_resnet50_fpn, "
            "retinanet_resnet50_fpn_v2, fcos_resnet50_fpn), a YOLO, or give an ONNX file"
        )
    ssd = isinstance(model, SSD)
    transform = model.transform
    fixed = getattr(transform, "fixed_size", None)  # width, height
    preprocessing = decide_detector(
        options,
        size=(fixed[1], fixed[0]) if fixed else (SIDE, SIDE),
        mode="stretch" if fixed else "letterbox",
        mean=tuple(transform.image_mean),
        std=tuple(transform.image_std),
    )
    return from_detector(
        OneStage(model, preprocessing.height, preprocessing.width),
        name=source.reference,
        options=options,
        preprocessing=preprocessing,
        labels=labels[1:] if ssd else labels,
        source=source,
        packages=("torchvision",),
        candidates_per_class=model.topk_candidates if ssd else None,
    )


class OneStage(nn.Module):
    """Normalised float32[N,3,H,W] -> scores float32[N,A,C], boxes float32[N,A,4] cut at the picture's borders, as theirs are."""

    anchors: torch.Tensor
    border: torch.Tensor

    def __init__(self, model: Any, height: int, width: int) -> None:
        super().__init__()
        self.model: Any = model.eval()
        with torch.inference_mode():
            picture = torch.zeros(1, 3, height, width)
            anchors = self.model.anchor_generator(ImageList(picture, [(height, width)]), self._features(picture))[0]
        self.register_buffer("anchors", anchors.clone())
        self.register_buffer("border", torch.tensor([width, height, width, height], dtype=torch.float32))

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and boxes."""
        found = self.model.head(self._features(picture))
        logits, deltas = found["cls_logits"], found["bbox_regression"]
        rows, boxes = logits.shape[0], logits.shape[1]
        if isinstance(self.model, SSD):
            scores = torch.softmax(logits, dim=-1)
        elif isinstance(self.model, FCOS):
            scores = torch.sqrt(torch.sigmoid(logits) * torch.sigmoid(found["bbox_ctrness"]))
        else:
            scores = torch.sigmoid(logits)
        anchors: torch.Tensor = self.anchors.unsqueeze(0).expand(rows, -1, -1)
        if isinstance(self.model, FCOS):
            corners = self.model.box_coder.decode(deltas, anchors)
        else:
            corners = self.model.box_coder.decode_single(deltas.reshape(-1, 4), anchors.reshape(-1, 4)).reshape(rows, boxes, 4)
        return scores, torch.minimum(corners.clamp(min=0), self.border)

    def _features(self, picture: torch.Tensor) -> list[torch.Tensor]:
        features = self.model.backbone(picture)
        return [features] if isinstance(features, torch.Tensor) else list(features.values())
