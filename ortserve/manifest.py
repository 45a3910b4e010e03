"""The facts stored beside a model: what it takes, what it answers, how it was made and how it was checked.

`manifest.json` lies in the package's folder next to the ONNX files. Names, shapes and labels come from here, never from
constants in the code that serves. Written once by the build, read by the service, shown at `GET /models/{name}`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ortserve.errors import ModelError

MANIFEST_FILENAME = "manifest.json"

Precision = Literal["fp32", "fp16", "int8"]
# Of a detector's raw output, by the family that answers so; what they mean stands at `Detection`.
Layout = Literal["yolov8", "yolov5", "end-to-end", "scores-boxes"]
BoxFormat = Literal["xyxy", "cxcywh", "xywh"]
Background = Literal["none", "first", "last"]
ScoreActivation = Literal["none", "sigmoid", "softmax"]
LabelsPerBox = Literal["best", "all"]
Nms = Literal["graph", "service", "none"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Facts):
    """One graph input or output. A string in `shape` is a free dimension; the first is always "batch"."""

    name: str
    dtype: str  # numpy's name: "uint8", "float32"
    shape: tuple[int | str, ...]

    def concrete(self, rows: int, length: int = 1) -> tuple[int, ...]:
        """The shape with its first dimension as `rows` and any other free one as `length`."""
        return (rows, *(dim if isinstance(dim, int) else length for dim in self.shape[1:]))


class Preprocessing(_Facts):
    """How a decoded RGB picture becomes `uint8[height, width, 3]`; equals torchvision's reference transform on PIL pictures.

    `crop`: the shorter side is resized to `resize_size`, then the centre `height` x `width` is cut (torchvision's `ImageClassification`).
    `stretch`: resized to `height` x `width`, whatever the aspect; with a `resize_size`, to a square of that and then cut.
    `pad`: resized to fit inside, centred, the rest is `pad_value`. `letterbox`: as `pad`, with Ultralytics' roundings.
    """

    mode: Literal["crop", "stretch", "pad", "letterbox"]
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    resize_size: int | None = Field(default=None, gt=0)  # pixels of the shorter side; for modes "crop" and "stretch"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    # False: each pixel from its nearest neighbours alone, also where the picture shrinks, as OpenCV's INTER_LINEAR does it. For detectors.
    antialias: bool = True
    pad_value: int = Field(default=0, ge=0, le=255)
    channels: Literal["rgb", "bgr"] = "rgb"  # the order the model takes; turned inside the graph, `mean` and `std` are RGB all the same
    # Inside the graph, stated here for the reader: (pixel / 255 - mean) / std, per RGB channel.
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Detection(_Facts):
    """How a detector answers. What serving reads are `nms`, `labels_per_box` and `max_detections`; the rest says how it was decoded.

    Layouts of the raw output: `yolov8` [N,4+classes,boxes]; `yolov5` [N,boxes,5+classes], the fifth an objectness that multiplies the
    classes; `end-to-end` [N,boxes,6], corners, score and class; `scores-boxes` two outputs [N,boxes,classes] and [N,boxes,4].
    """

    layout: Layout
    boxes: int = Field(gt=0)  # predictions a picture, before anything is left out
    box_format: BoxFormat
    relative: bool  # raw coordinates were 0 to 1 and not pixels
    background: Background
    score_activation: ScoreActivation
    labels_per_box: LabelsPerBox  # "best": a box is of its best class alone; "all": of every class over the threshold
    nms: Nms  # where overlapping boxes are left out: in the graph, in the service, or nowhere, since the model needs none
    max_detections: int = Field(gt=0)  # the most a picture is answered with


class Tokenization(_Facts):
    """How a text becomes `input_ids` and `attention_mask` (and `token_type_ids` where the model has them), int64[batch, sequence]."""

    file: str  # of the package, in the format of the `tokenizers` library; it truncates and pads nothing by itself
    max_tokens: int = Field(gt=0)  # the model's limit for one text, the special tokens included


class Embedding(_Facts):
    """What an embedding is made of. All of it is inside the graph, stated here for the reader."""

    dimension: int = Field(gt=0)
    pooling: str  # how the tokens' vectors become one: "mean", "cls", ... (sentence-transformers' names)
    normalized: bool  # whether its length is 1


class Difference(_Facts):
    """How far one output is from its reference over all checked rows."""

    max_abs: float  # absolute, or relative to the reference's range where the output has no fixed one (logits)
    cosine_min: float  # smallest cosine similarity of any row
    limit: float  # on max_abs
    passed: bool


class BatchCheck(_Facts):
    """One batch run through the serving session and compared."""

    inputs: str  # "noise", "black", "white", "pictures", "calibration"
    batch: int
    outputs: dict[str, Difference]  # by the name of the output
    finite: bool  # no NaN, no Inf


class Agreement(_Facts):
    """How often the file says the same as the reference, on samples like those that will be served."""

    measure: str  # "top-1 agreement"; what it means stands in the task's file under `export/tasks`
    value: float | None  # 0..1; None reads "not measurable", `note` says why
    limit: float
    samples: int
    passed: bool
    note: str


class ParityReport(_Facts):
    """The evidence `verify` returns for one stored file."""

    reference: str  # "PyTorch fp32 (torch 2.15.0)" or "model.onnx, optimisations off"
    provider: str  # the session's confirmed provider
    checks: tuple[BatchCheck, ...]
    agreement: Agreement
    passed: bool
    failures: tuple[str, ...]  # one line for each number that failed; empty when passed


class Variant(_Facts):
    """One ONNX file of the package."""

    file: str  # a plain file name inside the package
    sha256: str
    size_bytes: int
    nodes: int
    fused: dict[str, int] = {}  # of these, ONNX Runtime's own operators that stand for many of the exported ones: operator -> nodes
    opset: int
    parity: ParityReport


class Source(_Facts):
    """Where the model came from."""

    kind: Literal["digits", "torchvision", "timm", "ultralytics", "huggingface", "python", "onnx"]
    reference: str  # "resnet50", "net.py:build", "model.onnx": names, never a path of the builder's machine
    weights: str  # "DEFAULT", "random (seed 0)", "trained", a file name
    weights_sha256: str | None = None


class Manifest(_Facts):
    """Everything the service needs to know of a model. The version is the store's and is not repeated here."""

    schema_version: Literal[1] = 1
    name: str
    task: str  # a module of `ortserve/tasks`, named as in Hugging Face's task list: "image-classification"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None  # of pictures
    detection: Detection | None = None  # of object detectors
    tokenization: Tokenization | None = None  # of texts
    embedding: Embedding | None = None
    files: dict[str, str] = {}  # what the package holds beside its ONNX files: plain file name -> sha256
    max_batch: int = Field(gt=0)  # the largest batch that was verified; the batcher never exceeds it
    batch_note: str = ""  # why it is 1, where the model itself fixes it
    variants: dict[Precision, Variant]
    source: Source
    versions: dict[str, str]  # package -> version that took part in the build
    created_at: str  # ISO 8601, UTC

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into the package's folder."""
        (folder / MANIFEST_FILENAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of the package in `folder`.

        Raises ModelError where it is missing, not valid, or names a file outside the package.
        """
        try:
            manifest = cls.model_validate_json((folder / MANIFEST_FILENAME).read_bytes())
        except FileNotFoundError:
            raise ModelError(
                f"model package {folder.parent.name}:{folder.name} has no {MANIFEST_FILENAME}: "
                "it was not made by build_model.py; build it again"
            ) from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ModelError(
                f"{MANIFEST_FILENAME} of {folder.parent.name}:{folder.name} is damaged at "
                f"{'.'.join(str(part) for part in first['loc']) or 'its start'}: {first['msg']}; build or import the model again"
            ) from None
        for file in (*(variant.file for variant in manifest.variants.values()), *manifest.files):
            if Path(file).name != file:
                raise ModelError(f"{MANIFEST_FILENAME} names {file!r}: expected a file name inside the package; build it again")
        return manifest

    def verified_path(self, folder: Path, precision: Precision) -> Path:
        """The ONNX file of a precision, after its sha256 was compared with the manifest's.

        Raises ModelError where the variant or the file is missing, is not a regular file, or has other bytes.
        """
        if precision not in self.variants:
            raise ModelError(f"model {self.name} has no {precision} variant, only {', '.join(self.variants)}: build it with --precision")
        variant = self.variants[precision]
        return self._verified(folder, variant.file, variant.sha256)

    def verified_file(self, folder: Path, name: str) -> Path:
        """The package's further file of that name, checked as `verified_path` checks. Raises ModelError, also where there is none."""
        if name not in self.files:
            raise ModelError(f"model {self.name} has no file {name}, which its task {self.task} needs: build it again")
        return self._verified(folder, name, self.files[name])

    def _verified(self, folder: Path, name: str, sha256: str) -> Path:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ModelError(f"model {self.name} lacks its file {name}: the package is damaged; build or import it again")
        actual = sha256_of(path)
        if actual != sha256:
            raise ModelError(
                f"model {self.name}: {name} is damaged: expected sha256 {sha256[:12]}…, found {actual[:12]}…; build or import it again"
            )
        return path


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
