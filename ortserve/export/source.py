"""SOURCE, told apart: digits, a torchvision or timm name, a Hugging Face directory, a Python, an Ultralytics or an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ortserve.errors import SourceError
from ortserve.export.loaded import Loaded
from ortserve.export.module import from_module
from ortserve.export.options import Options
from ortserve.manifest import Source


def load(options: Options, advance: Callable[[int, int], None]) -> Loaded:
    """The model that `options.source` names, with its labels, pre-processing and reference.

    Raises SourceError where it cannot be found or used, or is for another task than --task; the message says what to give instead.
    """
    loaded = _load(options, advance)
    if options.task not in (None, loaded.task.name):
        raise SourceError(f"--task {options.task}: {loaded.source.reference} is for {loaded.task.name}: leave --task out")
    return loaded


def _load(options: Options, advance: Callable[[int, int], None]) -> Loaded:
    # Imported where they are needed: torchvision and scikit-learn take seconds, and only one of them is used.
    source = options.source
    if source == "digits":
        return _digits(options, advance)
    if source.startswith("hf:"):
        from ortserve.export import hf_directory

        return hf_directory.load(options)
    if source.lower().endswith(".onnx"):
        from ortserve.export import onnx_detector, onnx_file

        return onnx_detector.load(options) if options.task == "object-detection" else onnx_file.load(options)
    if source.startswith("timm:"):
        from ortserve.export import timm_zoo

        return timm_zoo.load(options)
    if source.lower().endswith((".pt", ".yaml", ".yml")):
        from ortserve.export import ultralytics_model

        return ultralytics_model.load(options)
    if ":" in source or source.lower().endswith(".py"):
        from ortserve.export import python_file

        return python_file.load(options)
    from ortserve.export import torchvision_zoo

    return torchvision_zoo.load(options)


def _digits(options: Options, advance: Callable[[int, int], None]) -> Loaded:
    from ortserve.export import digits

    given = {
        "--weights": options.weights, "--labels": options.labels, "--input-size": options.input_size, "--mean": options.mean,
        "--std": options.std, "--resize-mode": options.resize_mode,
    }  # fmt: skip
    if wrong := [name for name, value in given.items() if value is not None]:
        raise SourceError(f"digits trains its own model and takes no {', '.join(wrong)}: leave it out, or package your own FILE.py:FACTORY")
    model, samples = digits.train(advance, seed=options.seed)
    facts = Source(kind="digits", reference="digits", weights=f"trained (seed {options.seed})")
    loaded = from_module(model, "digits", digits.LABELS, digits.PREPROCESSING, facts, ("scikit-learn",))
    return replace(loaded, samples=samples)
