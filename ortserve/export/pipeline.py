"""The stages of a build, in order: load, reference, export, simplify, convert, verify, save."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import onnx

from ortserve.errors import CalibrationError, ParityError
from ortserve.export import fp16, int8, store
from ortserve.export.graph import closing_nodes, fused_operators, node_count, opset_of, with_node_names
from ortserve.export.loaded import Loaded
from ortserve.export.options import Options
from ortserve.export.report import Screen, size
from ortserve.export.source import load
from ortserve.export.tasks import Samples, cut
from ortserve.export.verify import Expected, expect, verify
from ortserve.manifest import Manifest, Precision, Variant, sha256_of

# Part of every build; the source adds its own.
PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxsim", "pillow", "bentoml")


def build(options: Options, screen: Screen) -> str:
    """The tag NAME:VERSION of the package that was built, verified and saved.

    Raises a BuildError where that cannot be; then nothing was saved. The table has been shown by then if there were numbers.
    """
    with screen.stage("load") as stage:
        loaded = load(options, stage.advance)
        if loaded.max_batch is not None:
            options = replace(options, max_batch=loaded.max_batch)
        stage.result = ", ".join(
            filter(None, (loaded.source.reference, f"weights {loaded.source.weights}", loaded.note, loaded.batch_note))
        )
    for precision in options.precisions:
        loaded.task.agreement_limit(precision, options)  # an option out of range is told before minutes of work
    samples = _samples(options, loaded, screen)
    with store.staging(options.name or loaded.name, options.version) as staged:
        expected = _reference(options, loaded, samples, screen)
        graph = _graph(options, loaded, screen)
        variants: dict[Precision, Variant] = {}
        for precision in options.precisions:
            path = staged.folder / f"{precision}.onnx"
            _convert(graph, precision, path, loaded, expected, samples, screen)
            with screen.stage(f"verify {precision}") as stage:
                parity = verify(path, loaded.task, expected, precision, options, stage.advance)
                stage.result = f"{len(parity.checks)} checks, {'passed' if parity.passed else 'FAILED'}"
            stored = onnx.load(path)
            variants[precision] = Variant(
                file=path.name,
                sha256=sha256_of(path),
                size_bytes=path.stat().st_size,
                nodes=node_count(stored),
                fused=fused_operators(stored),
                opset=opset_of(stored),
                parity=parity,
            )
        screen.table(variants)
        if failed := [precision for precision, variant in variants.items() if not variant.parity.passed]:
            raise ParityError(f"{', '.join(failed)} did not pass the parity gate, nothing was saved: the lines above name each number")
        with screen.stage("save") as stage:
            for name, content in loaded.files.items():
                (staged.folder / name).write_bytes(content)
            tag = store.publish(staged, _manifest(options, staged, loaded, variants))
            stage.result = f"{tag}, {size(sum(variant.size_bytes for variant in variants.values()))}"
    return tag


def _samples(options: Options, loaded: Loaded, screen: Screen) -> Samples | None:
    """The samples to calibrate and measure on. Raises CalibrationError where a precision needs them and there are none."""
    if options.calibration is not None:
        with screen.stage(loaded.task.samples) as stage:
            samples = loaded.task.read_samples(options.calibration, stage.advance)
            stage.result = samples.note
        return samples
    if loaded.samples is None:
        _demand_measurable(options, loaded, f"no {loaded.task.samples} were given")
    return loaded.samples


def _reference(options: Options, loaded: Loaded, samples: Samples | None, screen: Screen) -> Expected:
    with screen.stage("reference") as stage:
        expected = expect(loaded.task, loaded.reference, options.max_batch, samples, stage.advance)
        stage.result = loaded.reference.description
    _demand_measurable(options, loaded, expected.unmeasurable)
    return expected


def _demand_measurable(options: Options, loaded: Loaded, reason: str | None) -> None:
    low = " and ".join(precision for precision in options.precisions if precision != "fp32")
    if low and reason:
        task = loaded.task
        raise CalibrationError(
            f"{low} must have its {task.measure} measured, and that cannot be ({reason}): {task.remedy}, or build --precision fp32 alone"
        )


def _graph(options: Options, loaded: Loaded, screen: Screen) -> onnx.ModelProto:
    with screen.stage("export") as stage:
        exported = loaded.graph(options.opset)
        stage.result = f"{_facts(exported)}, opset {opset_of(exported)}"
    with screen.stage("simplify") as stage:
        graph = loaded.simplify(exported)
        fused = ", ".join(f"{count} {operator}" for operator, count in fused_operators(graph).items())
        stage.result = f"{_facts(exported)} -> {_facts(graph)}{fused and f': {fused}'}"
    return graph


def _convert(
    graph: onnx.ModelProto, precision: Precision, path: Path, loaded: Loaded, expected: Expected, samples: Samples | None, screen: Screen
) -> None:
    """Write the graph in one precision to `path`, with its tail if it has one."""
    with screen.stage(f"convert {precision}") as stage:
        keep = closing_nodes(with_node_names(graph)) if loaded.tail is not None else []
        if precision == "int8" and loaded.task.int8 == "dynamic":
            int8.to_dynamic_int8(graph, path)
        elif precision == "int8":
            assert samples is not None  # asked for in _samples
            int8.to_int8(graph, samples.calibration, path, stage.advance, keep)
        elif precision == "fp16":
            fp16.save(fp16.to_fp16(graph, (cut(case.tensors, 0, 1) for case in expected.cases), keep), path)
        else:
            fp16.save(graph, path)
        if loaded.tail is not None:
            fp16.save(loaded.tail(onnx.load(path)), path)
        stage.result = f"{_facts(graph)} -> {_facts(onnx.load(path))}"


def _manifest(options: Options, staged: store.Staged, loaded: Loaded, variants: dict[Precision, Variant]) -> Manifest:
    return Manifest(
        name=staged.name,
        task=loaded.task.name,
        inputs=loaded.task.inputs,
        outputs=loaded.task.outputs,
        **loaded.facts,
        files={name: sha256_of(staged.folder / name) for name in loaded.files},
        max_batch=options.max_batch,
        batch_note=loaded.batch_note,
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


def _facts(graph: onnx.ModelProto) -> str:
    return f"{node_count(graph)} nodes {size(graph.ByteSize())}"
