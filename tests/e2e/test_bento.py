"""`bentoml build`, then the bento served from another folder, its sources gone: what it holds, what it pins, what it lets choose."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ortserve.compiled import FOLDER
from tests.packages import add_package, picture, write_profile
from tests.serving import DIGITS, ROOT, Server, bentoml

pytestmark = pytest.mark.e2e

SHIPPED = ("default", "edge", "latency", "light", "multi-model", "tensorrt", "throughput")


@dataclass(frozen=True)
class Bentos:
    """A store with two bentos whose checkout is gone."""

    home: Path
    digits: str  # NAME:VERSION of one that pins digits:1, as bentofile.yaml says
    both: str  # of one whose bentofile.yaml lists colours:1 beside digits:1

    def folder(self, tag: str) -> Path:
        """Where that bento lies."""
        return self.home / "bentos" / tag.replace(":", "/")


@pytest.fixture(scope="module")
def bentos(tmp_path_factory: pytest.TempPathFactory) -> Bentos:
    """Built from a copy of the checkout that was then deleted; meanwhile the store received newer versions of both models."""
    home = tmp_path_factory.mktemp("home")
    checkout = tmp_path_factory.mktemp("checkout")
    bentoml(home, "models", "import", str(DIGITS))
    add_package(home, "colours:1")
    for name in ("deploy", "ortserve", "profiles", "requirements", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("service.py", "build_model.py", "bentofile.yaml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, checkout / name)
    (checkout / ".env").write_text("TOKEN=secret\n")
    digits = _built(bentoml(home, "build", "--output", "tag", cwd=checkout))
    bentofile = yaml.safe_load((checkout / "bentofile.yaml").read_text())
    (checkout / "bentofile.yaml").write_text(yaml.safe_dump({**bentofile, "models": ["colours:1"]}))
    both = _built(bentoml(home, "build", "--output", "tag", cwd=checkout))
    shutil.rmtree(checkout)
    add_package(home, "digits:2")
    add_package(home, "colours:2")
    return Bentos(home, digits, both)


def _built(output: str) -> str:
    return output.strip().splitlines()[-1].removeprefix("__tag__:")


@pytest.fixture(scope="module")
def serve_bento(bentos: Bentos, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`serve_bento(tag, **env)`: a context manager around a ready `Server` started in an empty folder."""

    @contextmanager
    def start(tag: str, **env: str) -> Iterator[Server]:
        with Server(bentos.home, target=tag, cwd=tmp_path_factory.mktemp("elsewhere"), env=env) as server:
            yield server

    return start


def ask(server: Server, content: bytes) -> dict[str, Any]:
    """The answer to one PNG."""
    answer = httpx.post(f"{server.base_url}/classify", content=content, headers={"content-type": "image/png"}, timeout=30)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


# --- what it holds ---------------------------------------------------------------------------------------------------


def test_the_bento_holds_what_serves_and_nothing_else(bentos: Bentos) -> None:
    source = bentos.folder(bentos.digits) / "src"
    held = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    tools = {"export", "tune"}
    serving = {str(path.relative_to(ROOT)) for path in (ROOT / "ortserve").rglob("*.py") if not tools & {*path.relative_to(ROOT).parts}}
    native = {str(path.relative_to(ROOT)) for path in FOLDER.rglob("*") if path.is_file()}
    assert held == serving | native | {"service.py", "bentofile.yaml"} | {f"profiles/{name}.yaml" for name in SHIPPED}


def test_the_bento_asks_for_no_torch(bentos: Bentos) -> None:
    requirements = (bentos.folder(bentos.digits) / "env" / "python" / "requirements.txt").read_text()
    names = set(re.findall(r"^([A-Za-z0-9_.-]+)==", requirements, re.M))
    assert "onnxruntime-gpu" in names
    assert not names & {"torch", "torchvision", "onnx", "onnxsim", "onnxscript", "scikit-learn", "pytest", "locust"}
    assert requirements.count("--hash=sha256:") > len(names)


def test_the_bento_names_no_index_and_nothing_of_the_builders_machine(bentos: Bentos, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = bentos.folder(bentos.digits)
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            for spy in ("--index-url", "--extra-index-url", "--find-links", "--trusted-host", "TOKEN=", str(Path.home()) + "/",
                        str(ROOT), str(tmp_path_factory.getbasetemp())):  # fmt: skip
                assert spy not in text, f"{path.relative_to(folder)} holds {spy}"


# --- what it serves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", SHIPPED)
def test_every_shipped_profile_starts_with_the_one_bento(bentos: Bentos, serve_bento: Callable[..., Any], profile: str) -> None:
    with serve_bento(bentos.digits, ORTSERVE_PROFILE=profile, ORTSERVE_MODEL="digits") as server:
        answer = ask(server, (ROOT / "examples" / "seven.png").read_bytes())
        assert (answer["model"], answer["version"], answer["predictions"][0]["label"]) == ("digits", "1", "7")  # 2 is in the store too
        shown = httpx.get(f"{server.base_url}/models").json()
        assert shown["profile"] == profile
        assert shown["models"][0]["provider"] == "CPUExecutionProvider"
        samples = server.metrics()
    labels = {key for name, key in samples if name == "bentoml_service_request_total"}
    assert {("service_version", bentos.digits.partition(":")[2])} <= set().union(*labels)


def test_the_one_bento_serves_with_a_runner_of_its_own(bentos: Bentos, serve_bento: Callable[..., Any], tmp_path: Path) -> None:
    mine = write_profile(tmp_path / "mine.yaml", placement="separate", workers=2)
    with serve_bento(bentos.both, ORTSERVE_PROFILE=mine, ORTSERVE_MODEL="digits") as server:
        answer = ask(server, (ROOT / "examples" / "seven.png").read_bytes())
        assert (answer["model"], answer["version"], answer["predictions"][0]["label"]) == ("digits", "1", "7")
        pid = httpx.get(f"{server.base_url}/models/digits").json()["pid"]
        assert [process.pid for process in server.processes() if "model_runner" in process.cmdline()] == [pid]


@pytest.mark.parametrize(("wanted", "content", "served"), [
    ("colours:1", picture("blue"), ("colours", "1", "blue")),
    ("", (ROOT / "examples" / "seven.png").read_bytes(), ("digits", "1", "7")),
], ids=["tag", "unset"])  # fmt: skip
def test_a_bento_of_two_models_lets_the_environment_choose(
    bentos: Bentos, serve_bento: Callable[..., Any], wanted: str, content: bytes, served: tuple[str, str, str]
) -> None:
    with serve_bento(bentos.both, ORTSERVE_MODEL=wanted) as server:
        answer = ask(server, content)
        assert (answer["model"], answer["version"], answer["predictions"][0]["label"]) == served


def test_a_bento_serves_all_its_models_at_once_in_the_versions_it_pins(bentos: Bentos, serve_bento: Callable[..., Any]) -> None:
    with serve_bento(bentos.both, ORTSERVE_MODEL="digits,colours") as server:
        listed = httpx.get(f"{server.base_url}/models").json()["models"]
        assert [(model["name"], model["version"]) for model in listed] == [("digits", "1"), ("colours", "1")]
        png = {"content-type": "image/png"}
        answer = httpx.post(f"{server.base_url}/classify?model=colours", content=picture("green"), headers=png, timeout=30).json()
        assert (answer["model"], answer["version"], answer["predictions"][0]["label"]) == ("colours", "1", "green")


def test_a_bento_that_carries_its_models_needs_no_store(bentos: Bentos, tmp_path: Path) -> None:
    """As in a container: the models lie in the bento's own folder, and BENTOML_HOME has none."""
    folder = tmp_path / "bento"
    shutil.copytree(bentos.folder(bentos.both), folder)
    shutil.copytree(bentos.home / "models", folder / "models")
    (tmp_path / "empty").mkdir()
    with Server(tmp_path / "empty", cwd=folder, env={"ORTSERVE_MODEL": "colours"}) as server:
        answer = ask(server, picture("red"))
        assert (answer["model"], answer["version"], answer["predictions"][0]["label"]) == ("colours", "1", "red")


@pytest.mark.parametrize("wanted", ["digits:2", "cats", "two words"])
def test_a_model_that_is_not_in_the_bento_ends_the_start_naming_those_that_are(bentos: Bentos, tmp_path: Path, wanted: str) -> None:
    server = Server(bentos.home, target=bentos.both, cwd=tmp_path, env={"ORTSERVE_MODEL": wanted})
    try:
        assert server.wait_exit(120) == 1
        last = server.log().splitlines()[-1]
        assert last.startswith("error: ")
        assert "Traceback" not in server.log()
        if " " not in wanted:
            assert "digits:1" in last
            assert "colours:1" in last
    finally:
        server.stop()


def test_a_pinned_model_that_is_not_in_the_store_ends_the_start_with_one_line(bentos: Bentos, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(bentos.home / "bentos", home / "bentos")
    server = Server(home, target=bentos.digits, cwd=tmp_path)
    try:
        assert server.wait_exit(120) == 1
        last = server.log().splitlines()[-1]
        assert last.startswith("error: model digits:1, pinned by this bento, is not in the BentoML store"), server.log()
        assert "Traceback" not in server.log()
    finally:
        server.stop()
