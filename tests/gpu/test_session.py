"""The session on a real GPU: right numbers, right device, graphs, two batches at once, limits. Needs the `digits` package and no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from ortserve import gpu, tensorrt
from ortserve.errors import ProviderError
from ortserve.execution import Execution
from ortserve.local_engine import fitted, open_session
from ortserve.manifest import Manifest
from ortserve.profile_file import load
from ortserve.session import Session
from tests.serving import ROOT, Server

pytestmark = pytest.mark.gpu

BUCKETS = [1, 2, 4, 8]
# Absolute, on probabilities. fp32 convolutions use TF32's ten bits of mantissa on today's GPUs; fp16 has as many throughout.
TOLERANCE = {"fp32": 5e-3, "fp16": 2e-2}


def execution(provider: str = "CUDAExecutionProvider", **keys: Any) -> Execution:
    batching = {"max_batch_size": 8, "buckets": BUCKETS, "max_in_flight": 2}
    return Execution.model_validate({"provider": provider, "precision": ["fp32"], "batching": batching, **keys})


@pytest.fixture(scope="module")
def package(digits_home: Path) -> tuple[Path, Manifest]:
    folder = digits_home / "models" / "digits"
    folder = folder / (folder / "latest").read_text().strip()
    return folder, Manifest.read(folder)


def opened(package: tuple[Path, Manifest], wanted: Execution) -> Session:
    folder, manifest = package
    return open_session(folder, manifest, fitted(manifest, wanted), ["probabilities"])


def rows(package: tuple[Path, Manifest], count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    spec = package[1].inputs[0]
    return {spec.name: np.random.default_rng(seed).integers(0, 256, spec.concrete(count), dtype=np.uint8)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("graphs", ["required", "off"])
def test_cuda_answers_as_the_cpu_does(package: tuple[Path, Manifest], precision: str, graphs: str) -> None:
    if precision not in package[1].variants:
        pytest.skip(f"the package holds no {precision}")
    cpu = opened(package, execution("CPUExecutionProvider"))
    cuda = opened(package, execution(precision=[precision], cuda_graphs=graphs))
    assert cuda.provider == "CUDAExecutionProvider"
    for count in (*BUCKETS, 3, 1):
        sent = rows(package, count, seed=count)
        answer, expected = cuda.run(sent)["probabilities"], cpu.run(sent)["probabilities"]
        assert np.abs(answer.astype(np.float32) - expected).max() <= TOLERANCE[precision]


def test_every_bucket_has_a_graph_that_answers_as_without(package: tuple[Path, Manifest]) -> None:
    graphs, plain = opened(package, execution(cuda_graphs="required")), opened(package, execution())
    sizes = len(fitted(package[1], execution()).batching.buckets)
    assert (graphs.cuda_graphs, plain.cuda_graphs) == (2 * sizes, 0)
    for turn in range(3):
        for count in BUCKETS:
            sent = rows(package, count, seed=turn * 10 + count)
            np.testing.assert_allclose(graphs.run(sent)["probabilities"], plain.run(sent)["probabilities"], atol=2e-3)


@pytest.mark.parametrize("graphs", ["required", "off"])
def test_threads_get_their_own_answers_under_stress(package: tuple[Path, Manifest], graphs: str) -> None:
    session = opened(package, execution(cuda_graphs=graphs))
    sent = [rows(package, BUCKETS[seed % 4], seed) for seed in range(16)]
    expected = [session.run(one)["probabilities"] for one in sent]

    def ask(number: int) -> float:
        return float(np.abs(session.run(sent[number % 16])["probabilities"] - expected[number % 16]).max())

    with ThreadPoolExecutor(4) as callers:
        assert max(callers.map(ask, range(4000))) <= 2e-3


def test_buffers_are_used_again(package: tuple[Path, Manifest]) -> None:
    session = opened(package, execution(cuda_graphs="required"))
    before = gpu.devices()[0].memory_used_bytes
    for seed in range(500):
        session.run(rows(package, BUCKETS[seed % 4], seed))
    assert gpu.devices()[0].memory_used_bytes - before < 64 * 2**20


def test_a_memory_limit_is_kept(package: tuple[Path, Manifest]) -> None:
    with pytest.raises(Exception, match=r"(?i)memory|alloc|limit"):
        opened(package, execution(provider_options={"gpu_mem_limit": 4096}))


@pytest.mark.skipif(gpu.count() < 2, reason="needs two GPUs")
def test_the_device_that_was_named_is_used(package: tuple[Path, Manifest]) -> None:
    first, second = (reading.memory_used_bytes for reading in gpu.devices()[:2])
    session = opened(package, execution(provider_options={"device_id": 1}, cuda_graphs="required"))
    session.run(rows(package, 1))
    now = [reading.memory_used_bytes for reading in gpu.devices()[:2]]
    assert now[1] - second > now[0] - first


def test_a_hidden_gpu_is_refused_and_never_becomes_the_cpu(package: tuple[Path, Manifest]) -> None:
    folder, manifest = package
    path = manifest.verified_path(folder, "fp32")
    code = (
        "from pathlib import Path; from ortserve.execution import Execution; from ortserve.session import Session\n"
        f"Session.open(Path({str(path)!r}), Execution(provider='CUDAExecutionProvider'))"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "ortserve.errors." in result.stderr


def test_tensorrt_builds_once_and_answers_as_the_cpu_does(
    package: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        tensorrt.load_libraries()
    except ProviderError as error:
        pytest.skip(f"needs TensorRT: {error}")
    monkeypatch.setenv("ORTSERVE_ENGINE_CACHE", str(tmp_path))
    session = opened(package, execution("TensorrtExecutionProvider"))
    engines = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")}
    assert engines
    cpu = opened(package, execution("CPUExecutionProvider"))
    for count in (1, 3, 8):
        sent = rows(package, count)
        assert np.abs(session.run(sent)["probabilities"] - cpu.run(sent)["probabilities"]).max() <= TOLERANCE["fp32"]
    opened(package, execution("TensorrtExecutionProvider"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.engine")} == engines


@pytest.mark.parametrize("profile", sorted({"default", "latency", "throughput"}))
def test_the_service_runs_on_the_gpu_and_says_so(digits_home: Path, profile: str) -> None:
    with Server(digits_home, env={"ORTSERVE_PROFILE": profile}, ready_timeout_s=180) as server:
        picture = (ROOT / "examples" / "seven.png").read_bytes()
        answer = httpx.post(f"{server.base_url}/classify", files={"image": picture}, timeout=30).json()
        facts = httpx.get(f"{server.base_url}/models/digits", timeout=30).json()
    assert answer["predictions"][0]["label"] == "7"
    assert facts["provider"] == "CUDAExecutionProvider"
    sizes = len(facts["batching"]["buckets"])
    assert facts["cuda_graphs"] == sizes * load(profile).execution[0].batching.max_in_flight > 0
