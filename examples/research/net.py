"""A classifier of six colours in the style of a research repository: `net.py:build` makes the module, a checkpoint has its weights."""

from __future__ import annotations

import torch
from blocks import Residual
from torch import nn


class ColourNet(nn.Module):
    """float32[N,3,H,W] -> logits float32[N,classes]."""

    def __init__(self, classes: int = 6, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(Residual(width), Residual(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return logits


def build() -> nn.Module:
    """The module that the checkpoint's weights fit."""
    return ColourNet()
