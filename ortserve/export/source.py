"""SOURCE, told apart: digits, a torchvision name, the user's own Python file, or an ONNX file."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from ortserve.errors import SourceError
from ortserve.export.loaded import Loaded
from ortserve.export.options import Options
from ortserve.export.to_onnx import export
from ortserve.export.wrapper import TorchReference, ready
from ortserve.manifest import Preprocessing, Source

TORCH_PACKAGES = ("torch", "onnx", "onnxscript")


def load(options: Options, advance: Callable[[int, int], None]) -> Loaded:
    """The model that `options.source` names, with its labels, pre-processing and reference.

    Raises SourceError where it cannot be found or used; the message says what to give instead.
    """
    # Imported where they are needed: torchvision and scikit-learn take seconds, and only one of them is used.
    source = options.source
    if source == "digits":
        return _digits(options, advance)
    if source.lower().endswith(".onnx"):
        from ortserve.export import onnx_file

        return onnx_file.load(options)
    if ":" in source or source.lower().endswith(".py"):
        from ortserve.export import python_file

        return python_file.load(options)
    from ortserve.export import torchvision_zoo

    return torchvision_zoo.load(options)


def model_name(text: str) -> str:
    """A name BentoML takes, nearest to `text`: lower case letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-") or "model"


def from_module(
    model: nn.Module,
    name: str,
    labels: tuple[str, ...] | None,
    preprocessing: Preprocessing,
    source: Source,
    packages: tuple[str, ...] = (),
) -> Loaded:
    """A PyTorch model, checked: it runs on the input size, and there are as many labels as classes."""
    classes = ready(model, preprocessing)
    return Loaded(
        name=name,
        reference=TorchReference(model, preprocessing),
        graph=partial(export, model, preprocessing),
        labels=matching(labels, classes),
        preprocessing=preprocessing,
        source=source,
        packages=(*TORCH_PACKAGES, *packages),
    )


def matching(labels: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    """The labels, one for each class; `class_0`, `class_1`, ... where none are known."""
    if labels is None:
        return tuple(f"class_{index}" for index in range(classes))
    if len(labels) != classes:
        raise SourceError(f"expected {classes} labels, one for each class the model answers, got {len(labels)}: mend --labels")
    return labels


def read_labels(path: Path | None) -> tuple[str, ...] | None:
    """The lines of a labels file in order; None where no file was given."""
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"--labels {path} cannot be read ({error}): expected a text file in UTF-8, one label per line") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise SourceError(f"--labels {path}: line {empty[0]} is empty: expected one label per line, in the order of the classes")
    return tuple(line.strip() for line in lines)


def _digits(options: Options, advance: Callable[[int, int], None]) -> Loaded:
    from ortserve.export import digits

    given = {
        "--weights": options.weights, "--labels": options.labels, "--input-size": options.input_size, "--mean": options.mean,
        "--std": options.std, "--resize-mode": options.resize_mode,
    }  # fmt: skip
    if wrong := [name for name, value in given.items() if value is not None]:
        raise SourceError(f"digits trains its own model and takes no {', '.join(wrong)}: leave it out, or package your own FILE.py:FACTORY")
    model, pictures = digits.train(advance, seed=options.seed)
    facts = Source(kind="digits", reference="digits", weights=f"trained (seed {options.seed})")
    loaded = from_module(model, "digits", digits.LABELS, digits.PREPROCESSING, facts, ("scikit-learn",))
    return replace(loaded, pictures=pictures)
