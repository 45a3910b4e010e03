"""`build_model.py digits`: a small CNN for handwritten digits, trained in seconds on the pictures that scikit-learn carries."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from ortserve.export.loaded import Pixels
from ortserve.export.pictures import CALIBRATION, as_samples, spread, to_pixels
from ortserve.export.tasks import Samples
from ortserve.manifest import Preprocessing

LABELS = tuple(str(digit) for digit in range(10))
PREPROCESSING = Preprocessing(
    mode="crop", height=32, width=32, resize_size=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
# Every fourth of the 1797 is held back: fixed, spread over all writers, 450 pictures.
HELD_BACK_EVERY = 4
EPOCHS = 30
BATCH = 64


class DigitsNet(nn.Module):
    """float32[N,3,32,32] -> logits float32[N,10]. Colour says nothing about a digit, so the channels are averaged first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(1, 16, 2), _block(16, 32, 2), _block(32, 64, 2))
        self.head = nn.Linear(64 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        logits: torch.Tensor = self.head(self.features(x.mean(1, keepdim=True)).flatten(1))
        return logits


def held_back() -> list[tuple[bytes, int]]:
    """The 450 pictures that training never saw, as PNG bytes (light on dark, 64x64) with their labels."""
    return [(png(image), label) for image, label in held_back_images()]


def held_back_images() -> list[tuple[NDArray[np.float64], int]]:
    """The same pictures as scikit-learn has them, float64[8,8] of 0 to 16, with their labels."""
    return [(image, label) for image, label, held in _digits() if held]


def png(image: NDArray[np.float64], *, side: int = 64, dark_on_light: bool = False) -> bytes:
    """scikit-learn's 8x8 picture (0..16) as the PNG a user would send: grey, enlarged, light on dark unless told otherwise."""
    grey = np.rint(image * (255 / 16)).astype(np.uint8)
    picture = Image.fromarray(255 - grey if dark_on_light else grey).resize((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def train(advance: Callable[[int, int], None], *, seed: int = 0) -> tuple[nn.Module, Samples]:
    """The trained network, and pictures to calibrate on (training) and to measure on (held back).

    Trained through the PNGs and the pre-processing that serve; turned to dark on light half of the time, made smaller and shifted, so
    that a newcomer's own picture works. One thread and a seed: the same numbers on every run of one machine.
    """
    pixels, labels, held = _dataset()
    known = pixels[:, ~held].reshape(-1, 32, 32, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = DigitsNet()
            _fit(model, _normalised(pixels[0, ~held]), torch.from_numpy(labels[~held]), advance)
    finally:
        torch.set_num_threads(threads)
    measurement = pixels[:, held].reshape(-1, 32, 32, 3)
    note = f"{len(measurement)} held-back pictures, half of them dark on light; calibrated on others"
    return model, as_samples(known[spread(len(known), CALIBRATION)], measurement, note)


def _fit(model: nn.Module, x: torch.Tensor, y: torch.Tensor, advance: Callable[[int, int], None]) -> None:
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            if len(rows) < BATCH:
                continue
            loss = nn.functional.cross_entropy(model(_varied(x[rows])), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        advance(epoch + 1, EPOCHS)
    model.eval()


def _varied(x: torch.Tensor) -> torch.Tensor:
    """Normalised light-on-dark pictures, each at 0.6 to 1 of its size, shifted by up to a tenth, half of them turned to dark on light."""
    rows = len(x)
    theta = torch.zeros(rows, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0 / torch.empty(rows).uniform_(0.6, 1.0)
    theta[:, :, 2] = torch.empty(rows, 2).uniform_(-0.2, 0.2)  # of half the side
    grid = nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    # Outside the picture lies paper: -1 on light-on-dark pictures, so zero after adding one.
    moved = nn.functional.grid_sample(x + 1.0, grid, padding_mode="zeros", align_corners=False) - 1.0
    return moved * (torch.randint(0, 2, (rows, 1, 1, 1)) * 2 - 1)


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _normalised(pixels: Pixels) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5


def _digits() -> list[tuple[NDArray[np.float64], int, bool]]:
    """scikit-learn's 8x8 pictures, their labels, and whether each is held back."""
    data = load_digits()
    pairs = enumerate(zip(data.images, data.target, strict=True))
    return [(image, int(label), index % HELD_BACK_EVERY == 0) for index, (image, label) in pairs]


def _dataset() -> tuple[Pixels, NDArray[np.int64], NDArray[np.bool_]]:
    """uint8[2,1797,32,32,3] (light on dark, dark on light), labels, and which are held back."""
    images, labels, held = zip(*_digits(), strict=True)
    pixels = [[to_pixels(png(image, dark_on_light=dark_on_light), PREPROCESSING) for image in images] for dark_on_light in (False, True)]
    return np.array(pixels), np.array(labels, np.int64), np.array(held)
