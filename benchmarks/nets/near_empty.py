"""A model that does almost nothing to a 224 x 224 picture: 49 pixels of it and one small matrix. What is left is the serving around it."""

from __future__ import annotations

import torch
from torch import nn

SIDE = 224
STRIDE = 32
CLASSES = 10


class NearEmpty(nn.Module):
    """Normalised float32[N,3,224,224] -> logits float32[N,10], from every 32nd pixel of every 32nd row."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * (SIDE // STRIDE) ** 2, CLASSES)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(picture[:, :, ::STRIDE, ::STRIDE].flatten(1))
        return logits


def build() -> nn.Module:
    """The model, its weights those of torch's seed."""
    return NearEmpty().eval()
