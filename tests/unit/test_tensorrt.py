"""TensorRT's shapes and caches, made from a manifest: what needs no TensorRT to be shown."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from ortserve import gpu, tensorrt
from ortserve.errors import ProviderError
from ortserve.execution import Batching, Execution
from ortserve.local_engine import fitted
from ortserve.manifest import Manifest, TensorSpec, Tokenization
from ortserve.providers import providers
from tests.packages import add_package

PIXELS = TensorSpec(name="pixels", dtype="uint8", shape=("batch", 224, 224, 3))
TOKENS = tuple(TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("input_ids", "attention_mask"))


def execution(**keys: Any) -> Execution:
    return Execution.model_validate({"provider": "TensorrtExecutionProvider", "precision": ["fp16", "fp32"], **keys})


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Of a small fp16 package, verified at batches of up to 8; the caches in an empty folder, one made-up GPU."""
    monkeypatch.setenv("ORTSERVE_ENGINE_CACHE", str(tmp_path / "engines"))
    monkeypatch.setattr(gpu, "devices", lambda: [gpu.GpuReading(0, "NVIDIA H200 (SXM)", None, 0, 1)])
    return Manifest.read(add_package(tmp_path / "home", "colours:1", precision="fp16", max_batch=8))


def test_shapes_run_from_one_row_to_the_largest_batch_and_are_tuned_for_it() -> None:
    assert tensorrt.profile_shapes([PIXELS], Batching(max_batch_size=32), 1) == {
        "trt_profile_min_shapes": "pixels:1x224x224x3",
        "trt_profile_opt_shapes": "pixels:32x224x224x3",
        "trt_profile_max_shapes": "pixels:32x224x224x3",
    }


@pytest.mark.parametrize(("tokens", "usual"), [(None, 512), (4096, 128), (8, 1)])
def test_every_input_of_a_text_model_has_its_range(tokens: int | None, usual: int) -> None:
    shapes = tensorrt.profile_shapes(TOKENS, Batching(max_batch_size=32, max_batch_tokens=tokens), 512)
    assert shapes == {
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1",
        "trt_profile_opt_shapes": f"input_ids:32x{usual},attention_mask:32x{usual}",
        "trt_profile_max_shapes": "input_ids:32x512,attention_mask:32x512",
    }


def test_the_shapes_come_from_the_manifest_and_its_verified_batch(manifest: Manifest) -> None:
    made = tensorrt.prepared(fitted(manifest, execution(batching={"max_batch_size": 64, "max_queue_size": 64})), manifest, "fp16")
    assert made.provider_options["trt_profile_max_shapes"] == "pixels:8x8x8x3"
    texts = manifest.model_copy(update={"inputs": TOKENS, "tokenization": Tokenization(file="tokenizer.json", max_tokens=77)})
    assert "input_ids:8x77" in str(tensorrt.prepared(fitted(texts, execution()), texts, "fp16").provider_options["trt_profile_max_shapes"])


@pytest.mark.parametrize(("precision", "enabled"), [("fp16", True), ("fp32", None)])
def test_the_files_own_precision_decides_unless_the_profile_says_it(manifest: Manifest, precision: Any, enabled: bool | None) -> None:
    both = manifest.model_copy(update={"variants": dict.fromkeys(("fp16", "fp32"), manifest.variants["fp16"])})
    assert tensorrt.prepared(execution(), both, precision).provider_options.get("trt_fp16_enable") is enabled
    said = execution(provider_options={"trt_fp16_enable": False})
    assert tensorrt.prepared(said, both, precision).provider_options["trt_fp16_enable"] is False


def test_engine_and_timings_are_kept_apart_for_every_model_gpu_and_version(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(**keys: Any) -> Path:
        options = tensorrt.prepared(execution(**keys), manifest, "fp16").provider_options
        assert options["trt_engine_cache_enable"] is options["trt_timing_cache_enable"] is True
        assert options["trt_timing_cache_path"] == options["trt_engine_cache_path"]
        return Path(str(options["trt_engine_cache_path"]))

    first = folder()
    assert first.is_dir()
    assert first.is_relative_to(tmp_path / "engines" / manifest.variants["fp16"].sha256[:16])
    assert first.parent.name == f"NVIDIA_H200_SXM_-ort{ort.__version__}-trtunknown"
    assert folder() == first
    assert folder(batching={"max_batch_size": 4}) != first
    assert folder(provider_options={"trt_builder_optimization_level": 5}) != first
    monkeypatch.setattr(tensorrt, "version", lambda: "101401")
    assert folder().parent.name.endswith("-trt101401")
    monkeypatch.setattr(gpu, "devices", lambda: [gpu.GpuReading(0, "NVIDIA L4", None, 0, 1)])
    assert folder().parent.name.startswith("NVIDIA_L4-")


@pytest.mark.parametrize("xdg", [True, False])
def test_without_a_wish_they_lie_in_the_users_cache(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xdg: bool) -> None:
    monkeypatch.delenv("ORTSERVE_ENGINE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere") if xdg else "")
    folder = tensorrt.engine_folder(execution(), manifest.variants["fp16"].sha256, {})
    assert folder.is_relative_to((tmp_path / "elsewhere" if xdg else tmp_path / "me" / ".cache") / "ortserve" / "engines")


def test_a_build_is_announced_and_a_kept_engine_too(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ortserve.tensorrt"):
        made = tensorrt.prepared(execution(), manifest, "fp16")
        assert "building the TensorRT engine of colours fp16, which takes minutes" in caplog.text
        (Path(str(made.provider_options["trt_engine_cache_path"])) / "a_sm90.engine").touch()
        caplog.clear()
        tensorrt.prepared(execution(), manifest, "fp16")
    assert "taken from" in caplog.text
    assert "building" not in caplog.text


def test_a_folder_that_cannot_be_written_names_the_variable(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ORTSERVE_ENGINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ProviderError, match=r"cannot be kept in .*ORTSERVE_ENGINE_CACHE"):
        tensorrt.prepared(execution(), manifest, "fp16")


def test_missing_libraries_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, **_: Any) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    with pytest.raises(ProviderError, match=r"libnvinfer\.so\.10 cannot be loaded.*install TensorRT 10"):
        tensorrt.load_libraries()
    assert tensorrt.version() == "unknown"


def test_what_onnxruntime_is_given_is_text(manifest: Manifest) -> None:
    first, behind = providers(tensorrt.prepared(execution(provider_options={"device_id": 0}), manifest, "fp16"))
    assert first[1]["trt_engine_cache_enable"] == first[1]["trt_fp16_enable"] == "True"  # "1" is refused
    assert all(isinstance(value, str) for value in first[1].values())
    assert behind == ("CUDAExecutionProvider", {"device_id": "0"})
