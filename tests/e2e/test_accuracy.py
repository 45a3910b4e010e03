"""Right through the running service: every held-back digit over HTTP, compared with its label and with PyTorch's answer."""

from __future__ import annotations

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from ortserve.export.digits import DigitsNet, held_back
from tests.serving import DIGITS, Server

pytestmark = pytest.mark.e2e

PROBABILITY_TOLERANCE = 1e-4  # what fp32 is verified to when it is built


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The packaged network in PyTorch: its weights are those of the stored file, where each batch norm is part of its convolution."""
    with tarfile.open(DIGITS) as archive:
        files = {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    graph = onnx.load_from_string(files[json.loads(files["manifest.json"])["variants"]["fp32"]["file"]]).graph
    weights = {item.name.removeprefix("model."): torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    model = DigitsNet()
    for number, block in enumerate(model.features):
        kernel = weights[f"features.{number}.0.weight"]
        block[0] = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, 2, 1)
        block[0].weight.data, block[0].bias.data = kernel, weights[f"features.{number}.0.weight_bias"]
        block[1] = nn.Identity()
    model.head.weight.data, model.head.bias.data = weights["head.weight"], weights["head.bias"]
    return model.eval()


def pytorch_answer(network: nn.Module, pictures: list[bytes]) -> NDArray[np.float32]:
    """Probabilities float32[N,10], with torchvision's reference transform in front: nothing of this is the service's code."""
    transform = v2.Compose(
        [
            v2.Resize(32, interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    batch = torch.stack([transform(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures])
    with torch.inference_mode():
        answer: NDArray[np.float32] = network(batch).softmax(1).numpy()
    return answer


def test_held_back_digits_are_right_and_as_in_pytorch(digits: Server, network: nn.Module) -> None:
    pictures, labels = zip(*held_back(), strict=True)
    with httpx.Client(base_url=digits.base_url, timeout=60) as client, ThreadPoolExecutor(8) as threads:

        def ask(data: bytes) -> Any:
            return client.post("/classify", files={"image": data}, params={"top_k": 10}).raise_for_status().json()["predictions"]

        answers = list(threads.map(ask, pictures))
    right = np.mean([int(answer[0]["label"]) == label for answer, label in zip(answers, labels, strict=True)])
    assert len(pictures) == 450
    assert right >= 0.97
    served = np.zeros((len(answers), 10))
    for row, answer in enumerate(answers):
        for prediction in answer:
            served[row, prediction["class_id"]] = prediction["score"]
    np.testing.assert_allclose(served, pytorch_answer(network, list(pictures)), rtol=0, atol=PROBABILITY_TOLERANCE)


def test_batches_answer_as_single_pictures_do(digits: Server, network: nn.Module) -> None:
    pictures = [data for data, _ in held_back()][:64]
    files = [("images", ("digit.png", data, "image/png")) for data in pictures]
    results = httpx.post(f"{digits.base_url}/classify_batch", files=files, params={"top_k": 1}, timeout=60).json()["results"]
    expected = pytorch_answer(network, pictures)
    for result, row in zip(results, expected, strict=True):
        prediction = result["predictions"][0]
        assert prediction["class_id"] == row.argmax()
        assert prediction["score"] == pytest.approx(row.max(), abs=PROBABILITY_TOLERANCE)
