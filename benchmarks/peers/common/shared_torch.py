"""The same network in PyTorch, as it is, as TorchScript, or compiled: uint8[N,224,224,3] to probabilities float32[N,classes]."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from shared import MEAN, SIDE, STD, THREADS


def network() -> torch.nn.Module:
    """With its weights, in evaluation mode."""
    if os.environ["NET"] == "near_empty":
        from near_empty import build

        net = build()
    else:
        from torchvision.models import resnet50

        net = resnet50(weights=None)
    net.load_state_dict(torch.load(os.environ["WEIGHTS"], weights_only=True))
    return net.eval()


class Torch:
    """`kind` is eager, script or compile."""

    def __init__(self, kind: str) -> None:
        torch.set_num_threads(THREADS)
        self.net: Any = network()
        example = torch.zeros(1, 3, SIDE, SIDE)
        with torch.inference_mode():
            if kind == "script":
                self.net = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(self.net, example)))
            if kind == "compile":
                self.net = torch.compile(self.net)
            for _ in range(3):  # compiled, profiled and warm before the first request
                self(np.zeros((1, SIDE, SIDE, 3), np.uint8))

    def __call__(self, rows: Any) -> Any:
        """Probabilities."""
        normal = (rows.astype(np.float32) / 255 - MEAN) / STD
        with torch.inference_mode():
            return torch.softmax(self.net(torch.from_numpy(np.ascontiguousarray(normal.transpose(0, 3, 1, 2)))), dim=1).numpy()
