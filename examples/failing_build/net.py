"""A model that must not be served: it looks at the other pictures of its batch, so an answer depends on who else asks."""

from __future__ import annotations

import torch
from torch import nn


class Contrast(nn.Module):
    """float32[N,3,H,W] -> logits float32[N,10], each picture compared with the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.features(x - x.mean(0)))
        return logits


def build() -> nn.Module:
    """The module."""
    return Contrast()
