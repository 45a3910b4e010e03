"""The model without pooling as ONNX, which fastembed does by itself: `python export_hidden.py DIRECTORY MODEL.onnx`."""

from __future__ import annotations

import sys

import torch
from transformers import AutoModel

NAMES = ["input_ids", "attention_mask", "token_type_ids"]


class Hidden(torch.nn.Module):
    """The states of the last layer."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        """float32[N,S,D]."""
        states: torch.Tensor = self.model(**dict(zip(NAMES, tensors, strict=True))).last_hidden_state
        return states


if __name__ == "__main__":
    ids = torch.ones((2, 9), dtype=torch.int64)
    free = {name: {0: "batch", 1: "sequence"} for name in [*NAMES, "last_hidden_state"]}
    torch.onnx.export(
        Hidden(AutoModel.from_pretrained(sys.argv[1], attn_implementation="eager").eval()),
        (ids, ids, ids * 0),
        sys.argv[2],
        dynamo=False,
        opset_version=18,
        input_names=NAMES,
        output_names=["last_hidden_state"],
        dynamic_axes=free,
    )
