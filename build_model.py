"""Command line: a PyTorch or ONNX model becomes a verified package in the BentoML model store."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from ortserve.errors import OrtServeError
from ortserve.export.interrupt import Interrupt
from ortserve.export.options import BoxScale, ChannelOrder, Options, Pooling, ResizeMode, Suppression, Task
from ortserve.manifest import Background, BoxFormat, LabelsPerBox, Layout, Precision, ScoreActivation

# Panels of --help: what only some tasks take.
DETECTORS = "Object detection"
TEXTS = "Texts"

Triple = tuple[float, float, float]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels from "224" or "240x320"."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if not 1 <= len(sides) <= 2 or any(not 8 <= side <= 4096 for side in sides):
        raise typer.BadParameter(f"expected a side or HEIGHTxWIDTH, each 8 to 4096 pixels, as in 224 or 240x320, got {text!r}")
    return sides[0], sides[-1]


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """Distinct precisions in the order fp32, fp16, int8 from "fp32,int8"."""
    known = get_args(Precision)
    wanted = [part.strip() for part in text.split(",")]
    if unknown := [part for part in wanted if part not in known]:
        raise typer.BadParameter(f"expected some of {', '.join(known)}, separated by commas, got {unknown[0]!r}")
    return tuple(precision for precision in known if precision in wanted)


def main(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="digits, a torchvision classifier or detector (resnet50), timm:NAME, hf:DIRECTORY, FILE.py:FACTORY, MODEL.onnx, "
            "or Ultralytics' .pt or .yaml",
        ),
    ],
    task: Annotated[Task | None, typer.Option(help="What the model is for.  [default: what SOURCE says]")] = None,
    name: Annotated[str | None, typer.Option(help="Name in the store.  [default: from SOURCE]")] = None,
    version: Annotated[str | None, typer.Option(help="Version in the store.  [default: a new one by BentoML's scheme]")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="DEFAULT (torchvision's), random, or a .pth .pt .th .safetensors file.  [default: DEFAULT for torchvision]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For --weights random, and for training digits.")] = 0,
    labels: Annotated[
        Path | None, typer.Option(help="Text file, one label per line.  [default: torchvision's, else class_0, class_1, ...]")
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(help="Pixels: SIDE or HEIGHTxWIDTH.  [default: the model's, else 224; detectors 640]")
    ] = None,
    mean: Annotated[
        Triple | None, typer.Option(help="RGB, of values 0 to 1.  [default: the model's, else ImageNet's; detectors 0]")
    ] = None,
    std: Annotated[Triple | None, typer.Option(help="As --mean.  [detectors: 1]")] = None,
    resize_mode: Annotated[
        ResizeMode | None,
        typer.Option(help="crop the centre, stretch, pad or letterbox to fit.  [default: crop; detectors letterbox]"),
    ] = None,
    channel_order: Annotated[
        ChannelOrder | None, typer.Option(help="bgr for models fed by OpenCV. --mean and --std stay RGB.  [default: rgb]")
    ] = None,
    detection_layout: Annotated[
        Layout | None,
        typer.Option(
            help="yolov8 (to v12): [N,4+classes,boxes]; yolov5 (YOLOX): [N,boxes,5+classes]; end-to-end: [N,boxes,6]; "
            "scores-boxes: two outputs.  [default: from shapes and --labels]",
            rich_help_panel=DETECTORS,
        ),
    ] = None,
    box_format: Annotated[BoxFormat | None, typer.Option(help="[default: cxcywh for YOLO, else xyxy]", rich_help_panel=DETECTORS)] = None,
    box_scale: Annotated[
        BoxScale | None, typer.Option(help="relative: coordinates of 0 to 1.  [default: from a run on noise]", rich_help_panel=DETECTORS)
    ] = None,
    background_class: Annotated[
        Background | None,
        typer.Option(
            help="Which column of the scores means no object.  [default: first if --labels is one short]", rich_help_panel=DETECTORS
        ),
    ] = None,
    score_activation: Annotated[
        ScoreActivation | None, typer.Option(help="What makes probabilities of the scores.  [default: none]", rich_help_panel=DETECTORS)
    ] = None,
    labels_per_box: Annotated[
        LabelsPerBox | None,
        typer.Option(
            help="A box is of its best class, or of all over the threshold.  [default: best for YOLO, else all]", rich_help_panel=DETECTORS
        ),
    ] = None,
    nms: Annotated[
        Suppression | None,
        typer.Option(help="Where overlapping boxes are left out; the graph is faster.  [default: graph]", rich_help_panel=DETECTORS),
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(min=1, max=10000, help="The most objects of an answer.  [default: 300]", rich_help_panel=DETECTORS)
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(help="How tokens become one embedding.  [default: what the directory says, else mean]", rich_help_panel=TEXTS),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Embeddings of length 1.  [default: what the directory says, else yes]",
            rich_help_panel=TEXTS,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest text, special tokens included.  [default: what the directory says]", rich_help_panel=TEXTS),
    ] = None,
    precision: Annotated[str, typer.Option(help="Some of fp32,fp16,int8: variants of one package.")] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures for fp16 and int8: 200 or more, of 5 classes or more. For texts: of .txt files, one a line."),
    ] = None,
    opset: Annotated[int | None, typer.Option(min=13, max=23, help="ONNX operator set.  [default: 18, or the ONNX file's own]")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="fp32: largest difference of logits (of their range) and probabilities.  [default: 1e-4]")
    ] = None,
    min_agreement_fp16: Annotated[float | None, typer.Option(help="Top-1 agreement wanted.  [default: 0.995]")] = None,
    min_agreement_int8: Annotated[float | None, typer.Option(help="Top-1 agreement wanted.  [default: 0.98]")] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=1024, help="The largest batch that is verified and may be served.")] = 32,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of an error.")] = False,
) -> None:
    """Package a model: load, export, simplify, convert, verify against the original, save."""
    options = Options(
        source=source,
        task=task,
        name=name,
        version=version,
        weights=weights,
        seed=seed,
        labels=labels,
        input_size=None if input_size is None else parse_size(input_size),
        mean=mean,
        std=std,
        resize_mode=resize_mode,
        channel_order=channel_order,
        detection_layout=detection_layout,
        box_format=box_format,
        box_scale=box_scale,
        background_class=background_class,
        score_activation=score_activation,
        labels_per_box=labels_per_box,
        nms=nms,
        max_detections=max_detections,
        pooling=pooling,
        normalize=normalize,
        max_tokens=max_tokens,
        precisions=parse_precisions(precision),
        calibration=calibration,
        opset=opset,
        tolerance=tolerance,
        min_agreement_fp16=min_agreement_fp16,
        min_agreement_int8=min_agreement_int8,
        max_batch=max_batch,
    )
    try:
        with Interrupt() as interrupt:
            # Imported here: torch takes seconds, and --help or a mistyped option should not wait for it.
            from ortserve.export.pipeline import build
            from ortserve.export.report import Screen

            tag = build(options, screen := Screen(interrupt=interrupt))
        screen.line(f"Saved {tag}. Serve it:  ORTSERVE_MODEL={tag} bentoml serve")
    except OrtServeError as error:
        if debug:
            traceback.print_exc()
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="bold red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: nothing was saved")
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
