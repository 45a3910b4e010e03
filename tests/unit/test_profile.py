"""Profiles: what is refused and how it says so, and that every shipped one loads and gives its reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from ortserve.errors import ProfileError
from ortserve.profile import Profile
from ortserve.profile_file import SHIPPED, load, shipped_names

MINIMAL = "description: a test\nexecution: [{provider: CPUExecutionProvider}]\n"


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_minimal_file_loads_and_is_named_after_its_file(tmp_path: Path) -> None:
    profile = load(write(tmp_path, MINIMAL))
    assert profile.name == "mine"
    assert profile.execution[0].precision == ("fp32",)


def test_a_profile_is_frozen(tmp_path: Path) -> None:
    profile = load(write(tmp_path, MINIMAL))
    with pytest.raises(ValidationError, match="frozen"):
        profile.limits.max_image_bytes = 1  # type: ignore[misc]


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8)])
def test_auto_is_a_worker_for_every_two_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, workers: int) -> None:
    monkeypatch.setattr("ortserve.profile.available_cpus", lambda: cpus)
    assert load(write(tmp_path, MINIMAL + "workers: auto\n")).worker_count == workers
    assert load(write(tmp_path, MINIMAL + "workers: 3\n")).worker_count == 3


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("worker: 2\n", r"mine\.yaml: unknown key 'worker': did you mean 'workers'\?"),
        ("limits: {max_image_byte: 1}\n", r"unknown key 'limits\.max_image_byte': did you mean 'max_image_bytes'\?"),
        ("images: {zzz: 1}\n", r"unknown key 'images\.zzz': expected one of decode_threads, decoder"),
        ("workers: many\n", r": workers: .*valid integer.* or .*'auto', got 'many'"),
        ("workers: 0\n", r": workers: .*greater than or equal to 1 or .*'auto', got 0"),
        ("limits: {request_timeout_ms: 0}\n", r"limits\.request_timeout_ms: .*greater than 0"),
        ("metrics: {port: 70000}\n", r"metrics\.port: .*less than or equal to 65535, got 70000"),
        ("metrics: {host: localhost}\n", r"metrics\.host: .*does not appear to be an IPv4 or IPv6 address, got 'localhost'"),
    ],
)
def test_a_fault_names_the_file_the_key_and_the_remedy(tmp_path: Path, addition: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load(write(tmp_path, MINIMAL + addition))


@pytest.mark.parametrize(
    ("execution", "message"),
    [
        ("{provider: CPUExecutionProvider, batching: {max_batchsize: 1}}", r"execution\.0\.batching\.max_batchsize'.*'max_batch_size'"),
        ("{provider: CUDA}", r"execution\.0\.provider: .*CUDAExecutionProvider"),
        ("{provider: CPUExecutionProvider, precision: []}", "at least one of fp32, fp16, int8"),
        ("{provider: CPUExecutionProvider, session: {intra_op_num_threads: 0}}", "1 or more, or auto"),
        ("{provider: CPUExecutionProvider, batching: {buckets: [4, 2], max_batch_size: 4}}", "rising sizes"),
        ("{provider: CPUExecutionProvider, batching: {buckets: [1, 2], max_batch_size: 4}}", r"must be max_batch_size \(4\)"),
        ("{provider: CPUExecutionProvider, batching: {max_batch_size: 8, max_queue_size: 4}}", "must hold at least one batch"),
        ("{provider: CPUExecutionProvider, provider_options: {a: [1]}}", r"execution\.0\.provider_options\.a: .*, got \[1\]"),
        ("{}", r"key 'execution\.0\.provider' is missing"),
    ],
)
def test_a_fault_in_an_execution_is_located(tmp_path: Path, execution: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load(write(tmp_path, f"description: a test\nexecution: [{execution}]\n"))


def test_no_execution_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="execution"):
        load(write(tmp_path, "description: a test\nexecution: []\n"))


def test_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(
        ProfileError,
        match=r"'latencey' not found: expected one of default, edge, latency, light, multi-model, tensorrt, throughput, or the path",
    ):
        load("latencey")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="not found"):
        load(str(tmp_path / "none.yaml"))


def test_a_folder_is_not_a_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read"):
        load(f"{tmp_path}/")


@pytest.mark.parametrize("text", ["a: [1\n", "\tworkers: 1\n", "!!python/object/apply:os.getcwd []\n"])
def test_bad_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ProfileError, match=r"mine\.yaml is not valid YAML") as caught:
        load(write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1\n", "just words\n"])
def test_anything_but_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ProfileError, match="expected a mapping"):
        load(write(tmp_path, text))


def test_the_six_profiles_are_shipped() -> None:
    assert {"default", "latency", "throughput", "edge", "tensorrt", "multi-model"} <= set(shipped_names())


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_profile_loads_and_fits_itself(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    for execution in profile.execution:
        # A request larger than the queue would always be refused with 429, whatever the load.
        assert profile.limits.max_images_per_request <= execution.batching.max_queue_size
    assert profile.limits.max_image_bytes <= profile.limits.max_request_bytes <= profile.limits.max_buffered_bytes


# --- several models ---------------------------------------------------------------------------------------------------

SEVERAL = MINIMAL + "limits: {request_timeout_ms: 1000}\nimages: {decoder: draft, decode_threads: 2}\nmodels:\n"


def test_a_model_has_what_it_says_of_itself_and_else_what_is_said_for_all(tmp_path: Path) -> None:
    text = SEVERAL + (
        "  - model: a:1\n"
        "    limits: {max_text_chars: 7}\n"
        "    images: {decoder: exact}\n"
        "    objectives: {p99_ms: 20}\n"
        "    execution: [{provider: CPUExecutionProvider, precision: [int8]}]\n"
        "  - model: b\n"
    )
    profile = load(write(tmp_path, text))
    a, b, other = (profile.for_model(name) for name in ("a", "b", "c"))
    assert (a.limits.max_text_chars, a.limits.request_timeout_ms, a.limits.max_image_bytes) == (7, 1000, other.limits.max_image_bytes)
    assert (a.images.decoder, a.images.decode_threads, a.p99_target_ms, a.execution[0].precision) == ("exact", 2, 20, ("int8",))
    assert (b.limits, b.images, b.p99_target_ms, b.execution) == (other.limits, other.images, 250, other.execution)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ("  - model: a:1\n  - model: a:2\n", "a is there twice: requests choose a model by its name"),
        ("  - model: a\n    runner: second\n", "a has a runner, which placement: in_process has none of"),
        ("  - model: a\n    runner: 2nd-GPU\n", r"models\.0\.runner: .*pattern"),
        ("  - model: a\n    limits: {max_image_bytes: 1}\n", r"unknown key 'models\.0\.limits\.max_image_bytes'"),
        (
            "  - model: a\n    limits: {request_timeout_ms: 100}\n    objectives: {p99_ms: 100}\n",
            r"models: a: objectives\.p99_ms \(100\) must be",
        ),
        ("  - modell: a\n", r"unknown key 'models\.0\.modell': did you mean 'model'"),
        ("  - a\n", r"models\.0"),
        ("  a: {}\n", "models: "),
    ],
)
def test_what_is_wrong_with_a_model_is_told_with_its_place(tmp_path: Path, models: str, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        load(write(tmp_path, SEVERAL + models))


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        ("provider: CPUExecutionProvider, device_ids: [0]", "device_ids: CPUExecutionProvider has no GPUs"),
        ("provider: CUDAExecutionProvider, device_ids: [0], provider_options: {device_id: 1}", "both name the device"),
        ("provider: CUDAExecutionProvider, memory_limit_bytes: 1, provider_options: {gpu_mem_limit: 1}", "both limit the memory"),
        ("provider: TensorrtExecutionProvider, memory_limit_bytes: 1", "TensorRT keeps to none"),
    ],
)
def test_settings_of_a_device_that_contradict_each_other_are_refused(tmp_path: Path, execution: str, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        load(write(tmp_path, f"description: x\nexecution: [{{{execution}}}]\n"))


def sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The section and every section inside it."""
    yield section
    for field in section.model_fields.values():
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from sections(candidate)


@pytest.mark.parametrize(("objectives", "target_ms"), [("", 250), ("objectives: {p99_ms: 900}\n", 900)])
def test_the_p99_target_is_a_quarter_of_the_deadline_unless_it_is_given(tmp_path: Path, objectives: str, target_ms: float) -> None:
    assert load(write(tmp_path, f"{MINIMAL}limits: {{request_timeout_ms: 1000}}\n{objectives}")).p99_target_ms == target_ms


def test_a_p99_target_that_no_answer_could_miss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"objectives\.p99_ms \(1000\) must be below limits\.request_timeout_ms \(1000\)"):
        load(write(tmp_path, MINIMAL + "limits: {request_timeout_ms: 1000}\nobjectives: {p99_ms: 1000}\n"))


def test_every_key_of_the_schema_stands_in_the_default_profile() -> None:
    text = (SHIPPED / "default.yaml").read_text(encoding="utf-8")
    keys = {key for section in sections(Profile) for key in section.model_fields} - {"name"}  # set by load()
    of_one_model = {"model", "runner"}
    assert [key for key in of_one_model if not re.search(rf"^[ -]*{key}:", (SHIPPED / "multi-model.yaml").read_text(), re.MULTILINE)] == []
    keys -= of_one_model
    assert [key for key in sorted(keys) if not re.search(rf"^[ -]*{key}:", text, re.MULTILINE)] == []


@pytest.mark.parametrize("name", shipped_names())
def test_every_value_of_a_shipped_profile_has_its_reason_beside_it(name: str) -> None:
    lines = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"^[ -]*\w+: *[^ #]", line)]
    assert len(values) > 10
    says_itself = ("description:", "provider:")
    assert [line for line in values if " # " not in line and not line.lstrip(" -").startswith(says_itself)] == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("provider: CUDAExecutionProvider, provider_options: {enable_cuda_graph: 1}", r"one shape alone: expected cuda_graphs: auto"),
        (
            "provider: TensorrtExecutionProvider, provider_options: {trt_engine_cache_path: x}",
            "cache_path is made from the model",
        ),
        ("provider: CPUExecutionProvider, cuda_graphs: auto", r"expected off for CPUExecutionProvider"),
        ("provider: CUDAExecutionProvider, cuda_graphs: required", r"expected batching\.buckets"),
        (
            "provider: CUDAExecutionProvider, brief_batching: {}",
            r"brief_batching: CUDAExecutionProvider does not compute on a CPU: leave it",
        ),
        ("provider: CUDAExecutionProvider, cuda_graphs: maybe", r"cuda_graphs: .*'auto'"),
    ],
)
def test_graphs_and_engines_are_asked_for_in_one_way(tmp_path: Path, keys: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load(write(tmp_path, f"description: a test\nexecution: [{{{keys}}}]\n"))


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_cuda_execution_has_graphs_and_a_lane_to_copy_in(name: str) -> None:
    for execution in load(name).execution:
        if execution.provider == "CUDAExecutionProvider":
            assert execution.cuda_graphs == "auto"
            assert execution.batching.max_in_flight == (1 if name == "latency" else 2)
