"""The module that is exported: normalisation and layout in front of the user's model, softmax behind it; and its reference."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from ortserve.errors import SourceError
from ortserve.export.loaded import Pixels
from ortserve.manifest import Preprocessing
from ortserve.session import Tensors

# Rows that PyTorch is given at once: enough to use every core, small enough for the activations of a large model.
REFERENCE_ROWS = 16


class Prepared(nn.Module):
    """A module that takes `pixels` uint8[N,H,W,3] for one that takes normalised float32[N,3,H,W]."""

    scale: torch.Tensor
    bias: torch.Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self._bgr = preprocessing.channels == "bgr"
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).view(1, 3, 1, 1)
        # (pixel / 255 - mean) / std, as one multiplication and one addition; computed in double so that only their result is rounded.
        self.register_buffer("scale", (1.0 / (255.0 * std)).float())
        self.register_buffer("bias", (-mean / std).float())

    def prepared(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the model takes. The cast comes first: TensorRT takes a uint8 input only where a cast follows at once."""
        normalised = pixels.float().permute(0, 3, 1, 2) * self.scale + self.bias
        return normalised.flip(1) if self._bgr else normalised


class Packaged(Prepared):
    """`pixels` uint8[N,H,W,3] -> `logits` float32[N,C], `probabilities` float32[N,C]."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and probabilities."""
        logits = self.model(self.prepared(pixels)).float()
        return logits, torch.softmax(logits, dim=1)


class TorchRunner:
    """PyTorch's own answers in fp32, normalised the way torchvision does it: independent of the wrapper that is exported."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        self.description = f"PyTorch fp32 (torch {torch.__version__.partition('+')[0]})"
        self._model = model
        self._bgr = preprocessing.channels == "bgr"
        self._mean = torch.tensor(preprocessing.mean).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std).view(1, 3, 1, 1)

    def __call__(self, pixels: Pixels) -> list[NDArray[Any]]:
        """Each output of the module for these pictures; of a module that answers one tensor, that one."""
        with torch.inference_mode():
            parts = [self._outputs(torch.from_numpy(chunk)) for chunk in _chunks(pixels)]
            return [torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True)]

    def _outputs(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        normalised = (pixels.permute(0, 3, 1, 2).float() / 255.0 - self._mean) / self._std
        answer = self._model(normalised.flip(1) if self._bgr else normalised)
        return [tensor.float() for tensor in ([answer] if isinstance(answer, torch.Tensor) else answer)]


class TorchReference:
    """`Reference` for a classifier."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        self._run = TorchRunner(model, preprocessing)
        self.description = self._run.description

    def __call__(self, inputs: Tensors) -> Tensors:
        """As `Reference`."""
        [logits] = self._run(inputs["pixels"])
        return {"logits": logits, "probabilities": torch.softmax(torch.from_numpy(logits), dim=1).numpy()}


def ready(model: nn.Module, preprocessing: Preprocessing) -> int:
    """How many classes the model answers, after it was put into fp32 and evaluation mode and tried on two black pictures.

    Raises SourceError where it does not take float32[N,3,H,W] or does not answer one tensor [N,C].
    """
    model.float().eval().requires_grad_(False)
    size = (preprocessing.height, preprocessing.width)
    try:
        with torch.inference_mode():
            answer = model(torch.zeros(2, 3, *size))
    except Exception as error:  # the user's code may raise anything
        reason = next(iter(str(error).splitlines()), "")
        raise SourceError(
            f"the model does not run on float32[2,3,{size[0]},{size[1]}] ({type(error).__name__}: {reason}): set --input-size"
        ) from error
    if not isinstance(answer, torch.Tensor) or answer.ndim != 2 or answer.shape[0] != 2 or answer.shape[1] < 2:
        shown = f"{list(answer.shape)}" if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise SourceError(
            f"expected the model to answer one tensor [2, classes] for 2 pictures, got {shown}: "
            "let the factory return a module that gives the logits alone"
        )
    return int(answer.shape[1])


def _chunks(pixels: Pixels) -> list[Pixels]:
    return [pixels[start : start + REFERENCE_ROWS] for start in range(0, len(pixels), REFERENCE_ROWS)]
