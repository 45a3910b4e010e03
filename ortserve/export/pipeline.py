"""The stages of a build, in order: load, reference, export, simplify, convert, verify, save."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import onnx

from ortserve.errors import CalibrationError, ParityError
from ortserve.export import fp16, int8, store
from ortserve.export.graph import node_count, opset_of
from ortserve.export.limits import MIN_CLASSES, MIN_PICTURES, limits_for
from ortserve.export.loaded import Loaded, Pictures
from ortserve.export.options import Options
from ortserve.export.pictures import read_folder
from ortserve.export.report import Screen, size
from ortserve.export.simplify import simplify
from ortserve.export.source import load
from ortserve.export.verify import Expected, expect, measurable, verify
from ortserve.manifest import Manifest, Precision, TensorSpec, Variant, sha256_of

TASK = "image-classification"
# Part of every build; the source adds its own.
PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxsim", "pillow", "bentoml")


def build(options: Options, screen: Screen) -> str:
    """The tag NAME:VERSION of the package that was built, verified and saved.

    Raises a BuildError where that cannot be; then nothing was saved. The table has been shown by then if there were numbers.
    """
    limits = {precision: limits_for(precision, options) for precision in options.precisions}
    with screen.stage("load") as stage:
        loaded = load(options, stage.advance)
        stage.result = f"{loaded.source.reference}, weights {loaded.source.weights}, {len(loaded.labels)} classes"
    pictures = _pictures(options, loaded, screen)
    with store.staging(options.name or loaded.name, options.version) as staged:
        expected = _reference(options, loaded, pictures, screen)
        graph = _graph(options, loaded, screen)
        variants: dict[Precision, Variant] = {}
        for precision in options.precisions:
            path = staged.folder / f"{precision}.onnx"
            _convert(graph, precision, path, expected, pictures, screen)
            with screen.stage(f"verify {precision}") as stage:
                parity = verify(path, expected, limits[precision], needs_agreement=precision != "fp32", advance=stage.advance)
                stage.result = f"{len(parity.checks)} checks, {'passed' if parity.passed else 'FAILED'}"
            stored = onnx.load(path)
            variants[precision] = Variant(
                file=path.name,
                sha256=sha256_of(path),
                size_bytes=path.stat().st_size,
                nodes=node_count(stored),
                opset=opset_of(stored),
                parity=parity,
            )
        screen.table(variants)
        if failed := [precision for precision, variant in variants.items() if not variant.parity.passed]:
            raise ParityError(f"{', '.join(failed)} did not pass the parity gate, nothing was saved: the lines above name each number")
        with screen.stage("save") as stage:
            tag = store.publish(staged, _manifest(options, staged.name, loaded, variants))
            stage.result = f"{tag}, {size(sum(variant.size_bytes for variant in variants.values()))}"
    return tag


def _pictures(options: Options, loaded: Loaded, screen: Screen) -> Pictures | None:
    """The pictures to calibrate and measure on. Raises CalibrationError where a precision needs them and they are too few."""
    pictures = loaded.pictures
    if options.calibration is not None:
        with screen.stage("pictures") as stage:
            pictures = read_folder(options.calibration, loaded.preprocessing, stage.advance)
            stage.result = pictures.note
    have = 0 if pictures is None else len(pictures.measurement)
    if (low := _low(options)) and have < MIN_PICTURES:
        raise CalibrationError(
            f"{low} needs at least {MIN_PICTURES} pictures to measure its top-1 agreement, got {have}: "
            "give --calibration DIR with pictures like those you will serve, or build --precision fp32 alone"
        )
    return pictures


def _reference(options: Options, loaded: Loaded, pictures: Pictures | None, screen: Screen) -> Expected:
    with screen.stage("reference") as stage:
        expected = expect(loaded.reference, loaded.preprocessing, options.max_batch, pictures, stage.advance)
        stage.result = loaded.reference.description
    if (low := _low(options)) and not measurable(expected):
        classes = len(set(expected.top1.tolist()))
        raise CalibrationError(
            f"{low} needs pictures of at least {MIN_CLASSES} predicted classes to measure its top-1 agreement, the model gives {classes} "
            f"on these {len(expected.top1)}: give trained --weights and a --calibration DIR of varied pictures, or build fp32 alone"
        )
    return expected


def _graph(options: Options, loaded: Loaded, screen: Screen) -> onnx.ModelProto:
    with screen.stage("export") as stage:
        exported = loaded.graph(options.opset)
        stage.result = f"{_facts(exported)}, opset {opset_of(exported)}"
    with screen.stage("simplify") as stage:
        graph = simplify(exported)
        stage.result = f"{_facts(exported)} -> {_facts(graph)}"
    return graph


def _convert(
    graph: onnx.ModelProto, precision: Precision, path: Path, expected: Expected, pictures: Pictures | None, screen: Screen
) -> None:
    """Write the graph in one precision to `path`."""
    with screen.stage(f"convert {precision}") as stage:
        if precision == "int8":
            assert pictures is not None  # asked for in _pictures
            int8.to_int8(graph, pictures.calibration, path, stage.advance)
        elif precision == "fp16":
            fp16.save(fp16.to_fp16(graph, (case.pixels[:1] for case in expected.cases)), path)
        else:
            fp16.save(graph, path)
        stage.result = f"{_facts(graph)} -> {_facts(onnx.load(path))}"


def _manifest(options: Options, name: str, loaded: Loaded, variants: dict[Precision, Variant]) -> Manifest:
    shape = (loaded.preprocessing.height, loaded.preprocessing.width, 3)
    classes = len(loaded.labels)
    return Manifest(
        name=name,
        task=TASK,
        inputs=(TensorSpec(name="pixels", dtype="uint8", shape=("batch", *shape)),),
        outputs=tuple(TensorSpec(name=output, dtype="float32", shape=("batch", classes)) for output in ("logits", "probabilities")),
        labels=loaded.labels,
        preprocessing=loaded.preprocessing,
        max_batch=options.max_batch,
        variants=variants,
        source=loaded.source,
        versions={package: _version(package) for package in sorted({*PACKAGES, *loaded.packages})},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str:
    """A package's version without its build suffix; onnxruntime goes by several names, one of which is installed."""
    candidates = (package, "onnxruntime-gpu", "onnxruntime-openvino") if package == "onnxruntime" else (package,)
    for name in candidates:
        try:
            return metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    raise ModuleNotFoundError(f"{package} is not installed: run make setup")


def _low(options: Options) -> str:
    """The precisions that need agreement measured, as text; empty where there are none."""
    return " and ".join(precision for precision in options.precisions if precision != "fp32")


def _facts(graph: onnx.ModelProto) -> str:
    return f"{node_count(graph)} nodes {size(graph.ByteSize())}"
