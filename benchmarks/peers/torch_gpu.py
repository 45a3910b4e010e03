"""The figure to beat: PyTorch native on the GPU, one picture a request, as a plain HTTP service does it. ResNet50, random weights,
fp32; with --half in fp16 and channels_last, its picture page-locked, as a page of advice would have it.

`python -m benchmarks.peers.torch_gpu PORT [--half]` serves POST /classify (multipart, field `image`) and GET /readyz. Needs torch,
starlette, uvicorn and pillow: the network is written out here, so that no torchvision is needed; its layers and shapes are torchvision's.
"""

from __future__ import annotations

import asyncio
import io
import sys
from typing import Any

import numpy as np
import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from torch import nn


class Bottleneck(nn.Module):
    """ResNet v1.5's block: the stride is in the 3 x 3 convolution."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * 4
        self.body = nn.Sequential(
            *(nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.way = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if inside != out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(body(x) + x)."""
        return torch.relu(self.body(x) + self.way(x))


def resnet50() -> nn.Module:
    """The network, 25.6 million parameters."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(inside, width, stride if block == 0 else 1))
            inside = width * 4
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)).eval()


def pixels(picture: bytes) -> torch.Tensor:
    """float32[1,3,224,224], as torchvision's ImageClassification transform makes it."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    array = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    array = (array - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
    return torch.from_numpy(array.transpose(2, 0, 1)[None].copy())


def application(device: str, *, half: bool = False) -> Starlette:
    """The service on that device, warm."""
    dtype, layout = (torch.float16, torch.channels_last) if half else (torch.float32, torch.contiguous_format)
    model = resnet50().to(device, dtype, memory_format=layout)

    def moved(picture: torch.Tensor) -> torch.Tensor:
        if not half:
            return picture.to(device)
        locked = picture.pin_memory() if device == "cuda" else picture
        return locked.to(device, non_blocking=True).to(dtype, memory_format=layout)

    def answer(picture: bytes) -> dict[str, Any]:
        with torch.inference_mode():
            scores = torch.softmax(model(moved(pixels(picture))).float(), 1)[0].cpu()
        score, label = scores.max(0)
        return {"label": int(label), "score": float(score)}

    async def classify(request: Request) -> JSONResponse:
        async with request.form() as form:
            picture = await form["image"].read()  # type: ignore[union-attr]
        return JSONResponse(await asyncio.to_thread(answer, picture))

    async def ready(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    with torch.inference_mode():
        for _ in range(5):
            model(moved(torch.zeros(1, 3, 224, 224)))
    return Starlette(routes=[Route("/classify", classify, methods=["POST"]), Route("/readyz", ready)])


if __name__ == "__main__":
    served = application("cuda" if torch.cuda.is_available() else "cpu", half="--half" in sys.argv)
    uvicorn.run(served, port=int(sys.argv[1]), log_level="warning", access_log=False)
