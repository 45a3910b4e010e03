"""A small picture embedder with random weights."""

from __future__ import annotations

from torch import nn


def build() -> nn.Module:
    """float32[N,3,H,W] -> float32[N,48]."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
