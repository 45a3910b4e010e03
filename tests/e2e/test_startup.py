"""A start that cannot work ends with one line and status 1; one that works serves nobody before it is warm, and knows no torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.packages import add_package, write_profile
from tests.serving import ROOT, Server, bentoml_environment, until

pytestmark = pytest.mark.e2e

TORCH_SIDE = ("onnx", "onnxscript", "onnxsim", "safetensors", "sklearn", "torch", "torchvision")


# --- starts that cannot work -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is wrong, made in a folder for files and a store that belong to the case alone; the environment; what the line must say."""

    env: Mapping[str, str]
    says: str
    spoil: Callable[[Path, Path], object] = lambda _home, _files: None


def profile_file(text: str) -> Callable[[Path, Path], object]:
    return lambda _home, files: (files / "mine.yaml").write_text(text)


def execution(provider: str) -> str:
    return f"description: made by a test\nexecution:\n  - provider: {provider}\n    precision: [fp32, int8]\n"


def package(home: Path) -> Path:
    return add_package(home, "colours:1")


def flip_a_byte(home: Path, _files: Path) -> None:
    file = package(home) / "fp32.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_off_manifest(home: Path, _files: Path) -> None:
    manifest = package(home) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:200])


def link_to_the_same_bytes(home: Path, files: Path) -> None:
    file = package(home) / "fp32.onnx"
    shutil.move(file, files / "elsewhere.onnx")
    file.symlink_to(files / "elsewhere.onnx")


MINE = {"ORTSERVE_PROFILE": "FILES/mine.yaml"}
COLOURS = {"ORTSERVE_MODEL": "colours"}
CASES = {
    "unknown profile": Case({"ORTSERVE_PROFILE": "fastest"}, "expected one of default, edge, latency, light, multi-model, tensorrt"),
    "missing profile file": Case({"ORTSERVE_PROFILE": "FILES/none.yaml"}, "none.yaml' not found"),
    "relative profile file": Case({"ORTSERVE_PROFILE": "./none.yaml"}, "the service's folder: give its absolute path"),
    "misspelled key": Case(MINE, "did you mean 'workers'?", profile_file(execution("CPUExecutionProvider") + "wokers: 2\n")),
    "only CUDA": Case({**MINE, **COLOURS}, "there is no NVIDIA GPU", lambda home, files: (
        package(home), profile_file(execution("CUDAExecutionProvider"))(home, files))),
    "only CUDA, in the runner": Case({**MINE, **COLOURS}, "there is no NVIDIA GPU", lambda home, files: (
        package(home), profile_file(execution("CUDAExecutionProvider") + "placement: separate\nworkers: 2\n")(home, files))),
    "only OpenVINO": Case({**MINE, **COLOURS}, "install onnxruntime-openvino", lambda home, files: (
        package(home), profile_file(execution("OpenVINOExecutionProvider"))(home, files))),
    "missing model": Case({"ORTSERVE_MODEL": "cats"}, "model cats is not in the BentoML store"),
    "missing version": Case({"ORTSERVE_MODEL": "colours:2"}, "model colours:2 is not in the BentoML store", lambda home, _: package(home)),
    "no tag": Case({"ORTSERVE_MODEL": "two words"}, "is no model tag: expected NAME or NAME:VERSION"),
    "flipped byte": Case(COLOURS, "fp32.onnx is damaged: expected sha256", flip_a_byte),
    "missing file": Case(COLOURS, "lacks its file fp32.onnx", lambda home, _: (package(home) / "fp32.onnx").unlink()),
    "cut off manifest": Case(COLOURS, "manifest.json of colours:1 is damaged", cut_off_manifest),
    "no manifest": Case(COLOURS, "was not made by build_model.py", lambda home, _: (package(home) / "manifest.json").unlink()),
    "symlink": Case(COLOURS, "lacks its file fp32.onnx: the package is damaged", link_to_the_same_bytes),
    "precision not held": Case(COLOURS, "holds only int8", lambda home, _: add_package(home, "colours:1", precision="int8")),
    "tracing nowhere": Case(
        {**MINE, **COLOURS, "OTEL_BSP_SCHEDULE_DELAY": "-1"},
        "an OTEL_* variable cannot be used: schedule_delay_millis must be positive",
        lambda home, files: (package(home), profile_file(execution("CPUExecutionProvider") + "tracing: {enabled: true}\n")(home, files)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class End:
    """How a `bentoml serve` ended."""

    status: int
    log: str
    left_in_temp: list[str]
    left_running: list[str]


def start_and_end(case: Case, folder: Path) -> End:
    """Run the case by itself, temporary folder and all."""
    home, files, temp = folder / "home", folder / "files", folder / "temp"
    for made in (home, files, temp):
        made.mkdir(parents=True)
    case.spoil(home, files)
    env = {key: value.replace("FILES", str(files)) for key, value in case.env.items()}
    server = Server(home, env={**env, "TMPDIR": str(temp)})
    try:
        status = server.wait_exit(120)  # generous: that it ended by itself is what counts
        return End(status, server.log(), contents(temp), [" ".join(process.cmdline()) for process in server.processes()])
    finally:
        server.stop()


def contents(folder: Path) -> list[str]:
    """The names in a folder."""
    return [path.name for path in folder.iterdir()]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """How every case ended: started two at a time, most of what they cost is Python's imports."""
    folder = tmp_path_factory.mktemp("starts")
    with ThreadPoolExecutor(2) as pool:
        running = {name: pool.submit(start_and_end, case, folder / name.replace(" ", "_")) for name, case in CASES.items()}
        return {name: future.result() for name, future in running.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_start_that_cannot_work_ends_with_one_clear_line(ends: dict[str, End], name: str) -> None:
    end = ends[name]
    lines = end.log.splitlines()
    assert end.status == 1, end.log
    assert lines[-1].startswith("error: "), end.log
    assert CASES[name].says in lines[-1]
    assert sum(line.startswith("error:") for line in lines) == 1
    assert "Traceback" not in end.log


@pytest.mark.parametrize("name", CASES)
def test_a_start_that_cannot_work_leaves_nothing_behind(ends: dict[str, End], name: str) -> None:
    assert ends[name].left_in_temp == []
    assert ends[name].left_running == []


# --- a worker that cannot start although its parent could ------------------------------------------------------------


def test_a_service_whose_first_worker_cannot_start_ends_instead_of_starting_it_for_ever(tmp_path: Path) -> None:
    home, temp = tmp_path / "home", tmp_path / "temp"
    home.mkdir()
    temp.mkdir()
    package(home)
    mine = Path(write_profile(tmp_path / "mine.yaml"))
    server = Server(home, env={"ORTSERVE_PROFILE": str(mine), "ORTSERVE_MODEL": "colours", "TMPDIR": str(temp)})
    try:
        until(lambda: "listening on" in server.log())  # the parent has read it; the worker imports Python's half a second first
        mine.unlink()
        assert server.wait_exit() == 1
        lines = server.log().splitlines()
        assert lines[-1].startswith("error: a worker ended before it was ready")
        assert [line for line in lines if line.startswith("error: profile ") and "not found" in line], server.log()
        assert "Traceback" not in server.log()
        assert server.processes() == []
        assert contents(temp) == []
    finally:
        server.stop()


def test_a_service_told_to_stop_while_its_worker_starts_stops_well(tmp_path: Path, digits_home: Path) -> None:
    server = Server(digits_home, env={"TMPDIR": str(tmp_path)})
    try:
        until(lambda: "listening on" in server.log())  # the worker is a process; a signal while it is being made is lost to BentoML
        server.process.terminate()
        assert server.wait_exit() == 0
        assert "error:" not in server.log()
        assert server.processes() == []
        assert contents(tmp_path) == []
    finally:
        server.stop()


# --- a start that works ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Early:
    """A running service, and what its port answered from before it listened."""

    server: Server
    answers: list[tuple[str, int]]  # path, status


@pytest.fixture(scope="module")
def early(digits_home: Path) -> Iterator[Early]:
    """`digits` with the default profile, asked without a pause from the first moment."""
    seven = (ROOT / "examples" / "seven.png").read_bytes()
    answers: list[tuple[str, int]] = []
    enough = threading.Event()
    server = Server(digits_home)

    def ask(path: str) -> None:
        while not enough.is_set():
            try:
                if path == "/classify":
                    answer = httpx.post(server.base_url + path, content=seven, headers={"content-type": "image/png"}, timeout=60)
                    assert answer.is_error or answer.json()["predictions"][0]["label"] == "7"
                else:
                    answer = httpx.get(server.base_url + path, timeout=60)
                answers.append((path, answer.status_code))
            except httpx.ConnectError:  # and of no other kind: once it listens, whoever asks is answered
                time.sleep(0.01)  # nobody listens yet

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, path) for path in ("/classify", "/readyz")]
        try:
            server.wait_ready()
            until(lambda: sum(path == "/classify" for path, _ in answers) >= 50)
        finally:
            enough.set()
        for future in asking:
            future.result()
    with server:
        yield Early(server, answers)


def test_nothing_is_answered_before_the_worker_is_warm(early: Early) -> None:
    assert {status for _, status in early.answers} == {200}


def test_the_start_says_on_what_it_runs_and_why(early: Early) -> None:
    log = early.server.log()
    assert "serving digits:1, fp32, on CPUExecutionProvider, profile default" in log
    assert "profile asks for CUDAExecutionProvider, but there is no NVIDIA GPU" in log


def test_the_serving_processes_map_nothing_of_the_torch_side(early: Early) -> None:
    processes = early.server.processes()
    assert len(processes) == 2
    for process in processes:
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        assert "onnxruntime" in mapped or process.pid == early.server.process.pid
        for name in ("torch", "torchvision", "onnx", "onnxsim", "sklearn"):
            assert f"/site-packages/{name}/" not in mapped


def test_the_parent_process_loads_no_onnxruntime(early: Early) -> None:
    assert "onnxruntime" not in Path(f"/proc/{early.server.process.pid}/maps").read_text()


def test_the_service_imports_and_opens_its_model_with_the_torch_side_blocked(digits_home: Path, tmp_path: Path) -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in TORCH_SIDE)
    code = f"import sys\n{blocked}import service\nprint(service.ModelService.to_asgi() and list(service.ModelService.served))\n"
    env = bentoml_environment(digits_home, {"TMPDIR": str(tmp_path)})
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "['digits']\n"), result.stderr
