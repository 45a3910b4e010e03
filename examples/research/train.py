"""Trains `net.py` for some seconds and saves a checkpoint as research code does: DataParallel's names, weights beside an epoch.

    python examples/research/train.py FOLDER       writes checkpoint.pth, labels.txt and 240 pictures under pictures/
    python build_model.py examples/research/net.py:build --weights FOLDER/checkpoint.pth --labels FOLDER/labels.txt \\
        --input-size 32 --precision fp32,fp16,int8 --calibration FOLDER/pictures --name colours
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from net import build
from PIL import Image
from torch import nn

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 200),
    "yellow": (215, 200, 50),
    "purple": (140, 50, 160),
    "grey": (128, 128, 128),
}
# As torchvision's: what build_model.py takes where --mean and --std are not given.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
STEPS = 120
PICTURES = 240


def picture(label: int, random: np.random.Generator) -> np.ndarray:
    """uint8[36,36,3]: one colour, more or less bright, under noise."""
    colour = np.array(list(COLOURS.values())[label]) * random.uniform(0.75, 1.2)
    return np.clip(colour + random.normal(0, 18, (36, 36, 3)), 0, 255).astype(np.uint8)


def main(folder: Path) -> None:
    """Train and write everything into `folder`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    model = nn.DataParallel(build())  # prefixes every name in the checkpoint with "module."
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        labels = random.integers(0, len(COLOURS), 32)
        pixels = np.stack([picture(label, random)[2:34, 2:34] for label in labels])
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
        loss = nn.functional.cross_entropy(model(x), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict(), "epoch": 1, "optimizer": optimizer.state_dict()}, folder / "checkpoint.pth")
    (folder / "labels.txt").write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
    for index in range(PICTURES):
        name = list(COLOURS)[index % len(COLOURS)]
        Image.fromarray(picture(index % len(COLOURS), random)).save(folder / "pictures" / f"{name}_{index:03}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
