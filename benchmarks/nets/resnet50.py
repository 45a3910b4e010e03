"""Torchvision's resnet50 with random weights that tell pictures apart: `python resnet50.py WEIGHTS.pth PICTURE...` writes them.

As torch initialises it, a random resnet50 gives every picture the same class, and no answer could be told from a wrong one. So the
statistics of its normalisations are taken from the pictures, and its last layer looks at how a picture's features differ from their mean.
The work of an inference is that of any resnet50.
"""

from __future__ import annotations

import sys

import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet50
from torchvision.models.resnet import Bottleneck
from torchvision.transforms._presets import ImageClassification

SPREAD = 1.0  # of the logits, standard deviation
BRANCH = 0.2  # of a block's branch beside its skip: a random net with full branches is chaotic, and int8 would change every answer


def weighted(pictures: list[str]) -> nn.Module:
    """The model of seed 0."""
    torch.manual_seed(0)
    model = resnet50(weights=None)
    prepare = ImageClassification(crop_size=224, resize_size=232)
    batch = torch.stack([prepare(Image.open(path).convert("RGB")) for path in pictures])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what follows
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, BRANCH)
    head, model.fc = model.fc, nn.Identity()
    with torch.inference_mode():
        model.train()(batch)
        features = model.eval()(batch)
        offsets = features - features.mean(dim=0)
        head.weight.mul_(SPREAD / (offsets @ head.weight.T).std())
        head.bias.copy_(-head.weight @ features.mean(dim=0))
    model.fc = head
    return model


if __name__ == "__main__":
    torch.save(weighted(sys.argv[2:]).state_dict(), sys.argv[1])
