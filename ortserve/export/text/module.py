"""The modules that are exported: a transformer with pooling and normalisation, or with its classes' probabilities, behind it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ortserve.export.options import Pooling
from ortserve.session import Tensors

# Rows that PyTorch is given at once: enough to use every core, small enough for the activations of long texts.
REFERENCE_ROWS = 8
# As torch.nn.functional.normalize and sentence-transformers have them.
SHORTEST = 1e-12
FEWEST = 1e-9


class Embedder(nn.Module):
    """`input_ids`, `attention_mask`, maybe `token_type_ids`, int64[N,S] -> `embedding` float32[N,D]."""

    outputs = ("embedding",)

    def __init__(self, model: nn.Module, names: Sequence[str], pooling: Pooling, *, normalize: bool) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.pooling = pooling
        self.normalize = normalize

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        """The embeddings."""
        inputs = dict(zip(self.names, tensors, strict=True))
        states = self.model(**inputs).last_hidden_state.float()
        pooled = pool(states, inputs["attention_mask"], self.pooling)
        if self.normalize:
            # Not torch.nn.functional.normalize: it exports a ReduceL2, at which ONNX Runtime's shape inference gives up, and without
            # shapes neither attention nor skipped layer norms are fused.
            pooled = pooled / (pooled * pooled).sum(1, keepdim=True).sqrt().clamp(min=SHORTEST)
        return (pooled,)


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector [N,D] of the states [N,S,D] of a text's tokens; those that the mask leaves out have no part in it."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "lasttoken":
        last = (mask.sum(1) - 1).clamp(min=0)
        return states.gather(1, last.view(-1, 1, 1).expand(-1, 1, states.shape[2])).squeeze(1)
    held = mask.unsqueeze(-1).to(states.dtype)
    if pooling == "max":
        return (states + (1.0 - held) * -1e9).max(1).values
    count = held.sum(1).clamp(min=FEWEST)
    return (states * held).sum(1) / (count.sqrt() if pooling == "mean_sqrt_len_tokens" else count)


class Classifier(nn.Module):
    """`input_ids`, `attention_mask`, maybe `token_type_ids`, int64[N,S] -> `logits`, `probabilities` float32[N,C]."""

    outputs = ("logits", "probabilities")

    def __init__(self, model: nn.Module, names: Sequence[str], *, exclusive: bool) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.exclusive = exclusive  # the classes exclude each other: softmax, else sigmoid

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and probabilities."""
        logits = self.model(**dict(zip(self.names, tensors, strict=True))).logits.float()
        return logits, torch.softmax(logits, dim=1) if self.exclusive else torch.sigmoid(logits)


class TorchReference:
    """PyTorch's own answers in fp32, with PyTorch's fused attention: what is exported goes another way, one plain operator at a time."""

    def __init__(self, module: Embedder | Classifier) -> None:
        self.description = f"PyTorch fp32 (torch {torch.__version__.partition('+')[0]})"
        self._module = module

    def __call__(self, inputs: Tensors) -> Tensors:
        """As `Reference`."""
        tensors = [torch.from_numpy(inputs[name]) for name in self._module.names]
        with torch.inference_mode():
            parts = [
                self._module(*(tensor[start : start + REFERENCE_ROWS] for tensor in tensors))
                for start in range(0, len(tensors[0]), REFERENCE_ROWS)
            ]
        return {name: torch.cat([part[index] for part in parts]).numpy() for index, name in enumerate(self._module.outputs)}


def input_names(model: nn.Module, config: Any) -> tuple[str, ...]:
    """What the model takes: ids and mask, and the tokens' types where it tells types apart."""
    typed = "token_type_ids" in inspect.signature(model.forward).parameters and (getattr(config, "type_vocab_size", 0) or 0) > 1
    return ("input_ids", "attention_mask", *(["token_type_ids"] if typed else []))
