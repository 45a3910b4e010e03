"""build_model.py for detectors: a real one in three precisions, every kind of source, and a batch that cannot be freed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torchvision.models import get_model
from torchvision.models.detection.image_list import ImageList

from ortserve import images, placement
from ortserve.errors import SourceError
from ortserve.export.detection_form import Form
from ortserve.export.detection_graph import Tail
from ortserve.export.detection_reference import suppressed
from ortserve.export.loaded import Loaded
from ortserve.export.options import Options
from ortserve.export.source import load
from ortserve.export.tasks import Case, cut
from ortserve.export.torchvision_detectors import OneStage
from ortserve.manifest import Difference, Manifest
from ortserve.profile import Limits
from tests import reference
from tests.detectors import ASTRONAUT, constant_detector, face_pictures, faces_onnx
from tests.integration.test_build_sources import package

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def build(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**reference.environment(home), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "build_model.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real detector as an ONNX file."""
    return faces_onnx(tmp_path_factory.mktemp("faces") / "faces.onnx")


def test_a_real_detector_is_packaged_in_three_precisions(tmp_path: Path, faces: Path) -> None:
    shown = face_pictures(tmp_path / "pictures", 90)
    done = build(
        tmp_path, str(faces), "--task", "object-detection", "--labels", "examples/faces/labels.txt", "--max-batch", "4",
        "--precision", "fp32,fp16,int8", "--calibration", str(shown), "--input-size", "640",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    folder = package(tmp_path, "faces")
    manifest = Manifest.read(folder)
    assert manifest.detection is not None
    assert manifest.preprocessing is not None
    assert (manifest.detection.layout, manifest.detection.background, manifest.detection.relative) == ("scores-boxes", "first", True)
    assert manifest.labels == ("face",)
    agreements = {name: variant.parity.agreement.value or 0 for name, variant in manifest.variants.items()}
    assert agreements["fp32"] == 1.0
    assert agreements["fp16"] >= 0.99
    assert agreements["int8"] >= 0.95
    picture = images.decode(ASTRONAUT.read_bytes(), Limits())
    placed = placement.place(picture.size, manifest.preprocessing)
    pixels = placement.lay(picture, placed, manifest.preprocessing)[np.newaxis]
    row = {
        "score_threshold": np.array([0.5], np.float32),
        "iou_threshold": np.array([0.5], np.float32),
        "class_mask": np.ones((1, 1), bool),
    }
    for precision in manifest.variants:
        session = ort.InferenceSession(str(manifest.verified_path(folder, precision)), providers=["CPUExecutionProvider"])
        detections, count = session.run(["detections", "count"], {"pixels": pixels, **row})
        assert count.tolist() == [1]
        assert placed.back(detections[0, :1, :4])[0] == pytest.approx([178, 59, 272, 179], abs=8), precision


YOLO = np.concatenate([np.full((1, 2, 21), 32), np.full((1, 2, 21), 20), np.eye(3, 21)[np.newaxis] * 0.9], axis=1).astype(np.float32)


def test_a_fixed_batch_is_freed_or_served_one_by_one_with_the_reason(tmp_path: Path) -> None:
    """A batch of one, which a Reshape fixes and which can be freed; and one that nothing frees."""
    freed = constant_detector(tmp_path / "freed.onnx", [YOLO], (32, 32), batch="fixed")
    loaded = load(Options(source=str(freed), task="object-detection"), lambda *_: None)
    assert (loaded.max_batch, loaded.batch_note) == (None, "")
    stubborn = constant_detector(tmp_path / "stubborn.onnx", [YOLO], (32, 32), batch="stubborn")
    done = build(tmp_path, str(stubborn), "--task", "object-detection")
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = Manifest.read(package(tmp_path, "stubborn"))
    assert manifest.max_batch == 1
    assert manifest.batch_note.startswith("one picture at a time: stubborn.onnx was exported for one")
    assert "one picture at a time" in done.stdout
    assert {check.batch for check in manifest.variants["fp32"].parity.checks} == {1}


@pytest.mark.parametrize(
    ("raw", "flags", "layout", "nms"),
    [
        ([YOLO], {}, "yolov8", "graph"),
        ([YOLO], {"nms": "service"}, "yolov8", "service"),
        ([np.array([[[0, 0, 9, 9, 0.9, 1], [1, 1, 5, 5, 0.4, 0]] * 5], np.float32)], {"labels": ["a", "b"]}, "end-to-end", "none"),
    ],
)
def test_every_layout_is_understood_from_an_onnx_file(
    tmp_path: Path, raw: list[np.ndarray], flags: dict[str, Any], layout: str, nms: str
) -> None:
    if "labels" in flags:
        (tmp_path / "labels.txt").write_text("\n".join(flags["labels"]))
        flags = {"labels": tmp_path / "labels.txt"}
    path = constant_detector(tmp_path / "net.onnx", raw, (32, 32))
    loaded = load(Options(source=str(path), task="object-detection", **flags), lambda *_: None)
    detection = loaded.facts["detection"]
    assert (detection.layout, detection.nms) == (layout, nms)
    assert passes(loaded)


def passes(loaded: Loaded) -> bool:
    """Whether the whole graph answers the task's probes as the reference does, at every batch."""
    assert loaded.tail is not None
    graph = loaded.tail(loaded.simplify(loaded.graph(None)))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in loaded.task.outputs]
    differences: list[Difference] = []
    for probe in loaded.task.probes(7):
        case = Case(probe.inputs, probe.tensors, probe.batches, loaded.reference(probe.tensors))
        for batch in probe.batches:
            have = dict(zip(names, session.run(names, cut(probe.tensors, 0, batch)), strict=True))
            differences += loaded.task.compare(case, have, "fp32", Options(source="")).values()
    return all(difference.passed for difference in differences)


def test_a_factory_in_bgr(tmp_path: Path) -> None:
    (tmp_path / "bgr_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.conv = torch.nn.Conv2d(3, 7, 8, stride=8)\n"
        "    def forward(self, x):\n"
        "        y = self.conv(x).flatten(2).transpose(1, 2)\n"
        "        return torch.sigmoid(y[..., :3]), torch.cat([y[..., 3:5], y[..., 3:5] + torch.exp(y[..., 5:])], -1)\n"
        "def build(): return Net()\n"
    )
    options = Options(source=f"{tmp_path / 'bgr_net.py'}:build", task="object-detection", input_size=(64, 32), channel_order="bgr")
    loaded = load(options, lambda *_: None)
    assert loaded.facts["preprocessing"].channels == "bgr"
    assert passes(loaded)


def test_ultralytics_own_yaml_is_packaged(tmp_path: Path) -> None:
    done = build(tmp_path, "yolov8n.yaml", "--input-size", "64", "--max-batch", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = Manifest.read(package(tmp_path, "yolov8n"))
    assert manifest.source.kind == "ultralytics"
    assert len(manifest.labels) == 80


def test_ultralytics_files_without_its_package_say_what_to_do() -> None:
    with pytest.raises(SourceError, match=r"pip install ultralytics .*or where you have it: yolo export"):
        load(Options(source="yolo11n.pt"), lambda *_: None)


class RandomHead(torch.nn.Module):
    """Answers the same random numbers to any features, in the shapes of the real head."""

    def __init__(self, real: dict[str, torch.Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        spread = {"cls_logits": 1.5, "bbox_regression": 0.5, "bbox_ctrness": 1.0}
        self._answer = {name: torch.randn(tensor.shape, generator=generator) * spread[name] for name, tensor in real.items()}

    def forward(self, features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor[: len(features[0])] for name, tensor in self._answer.items()}


@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_torchvisions_own_post_processing_gives_the_same_boxes(name: str) -> None:
    """With random heads, since the untrained ones answer nothing; theirs is `postprocess_detections`, under its own thresholds."""
    torch.manual_seed(0)
    side = 320 if name.startswith("ssd") else 96
    model = get_model(name, weights=None, weights_backbone=None, num_classes=5).eval()
    model.score_thresh, model.nms_thresh, model.detections_per_img = 0.6, 0.5, 100
    if not name.startswith("ssd"):
        model.topk_candidates = 10**6  # theirs looks at the 1000 best of each level, ours at all over the threshold
    picture = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = list(model.backbone(picture).values())
        model.head = RandomHead(model.head(features))
        anchors = model.anchor_generator(ImageList(picture, [(side, side)] * 2), features)
        head = model.head(features)
        if not name.startswith("ssd"):
            levels = [feature.shape[2] * feature.shape[3] * model.anchor_generator.num_anchors_per_location()[0] for feature in features]
            head = {key: list(value.split(levels, dim=1)) for key, value in head.items()}
            anchors = [list(anchor.split(levels)) for anchor in anchors]
        want = model.postprocess_detections(head, anchors, [(side, side)] * 2)
        scores, boxes = OneStage(model, side, side)(picture)
    background = "first" if name.startswith("ssd") else "none"
    form = Form(
        layout="scores-boxes", boxes=boxes.shape[1], classes=scores.shape[2] - (background == "first"), box_format="xyxy",
        background=background, labels_per_box="all",
    )  # fmt: skip
    tail = Tail(form, side, side, True, 100, model.topk_candidates if name.startswith("ssd") else None)
    columns = scores.numpy()[..., 1:] if background == "first" else scores.numpy()
    inputs = {
        "score_threshold": np.full(2, 0.6, np.float32),
        "iou_threshold": np.full(2, 0.5, np.float32),
        "class_mask": np.ones((2, form.classes), bool),
    }
    have = suppressed({"boxes": boxes.numpy(), "scores": columns.transpose(0, 2, 1)}, inputs, tail)
    for row, theirs in enumerate(want):
        count = have["count"][row]
        assert count == len(theirs["scores"]) > 5
        np.testing.assert_allclose(have["detections"][row, :count, 4], theirs["scores"].numpy(), atol=1e-6)
        np.testing.assert_allclose(have["detections"][row, :count, :4], theirs["boxes"].numpy(), atol=1e-3)
        labels = have["detections"][row, :count, 5] + (background == "first")
        np.testing.assert_array_equal(labels, theirs["labels"].numpy())


def test_two_stages_are_refused_with_the_reason() -> None:
    with pytest.raises(SourceError, match=r"two stages.*Choose one of one stage"):
        load(Options(source="fasterrcnn_mobilenet_v3_large_320_fpn", weights="random"), lambda *_: None)
