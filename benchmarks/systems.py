"""Every system that is measured: how it is started, asked, and read. One table; a peer's own set-up stands in its folder under `peers`."""

from __future__ import annotations

import base64
import json
import os
import sys
import sysconfig
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import client
from benchmarks.environments import environment
from benchmarks.models import HOME, NETS, Model
from benchmarks.places import PEERS, WORK
from benchmarks.process import OTHER_PORT, PORT, Served
from ortserve import profile_file
from ortserve.cpus import available_cpus
from tests.serving import ROOT

Kind = Literal["limit", "reference", "peer", "ours"]
COMMON = f"{PEERS / 'common'}{os.pathsep}{NETS}"
BENTOML = [sys.executable, "-m", "bentoml", "serve"]
ON_PORT = ["--host", "127.0.0.1", "--port", PORT]
UNTRACED = {"OTEL_SDK_DISABLED": "true"}  # BentoML's tracing, which nobody reads here, costs requests per second
UVICORN = ["uvicorn", "--host", "127.0.0.1", "--port", PORT, "--no-access-log", "--log-level", "error"]


INT8 = WORK / "int8.yaml"
INDUCTOR = WORK / "inductor"  # where torch.compile keeps what it compiled: the first start takes a minute and a half, a later one seconds


def int8_profile() -> Path:
    """The default profile with int8 in place of fp32."""
    execution = profile_file.load("default").execution[-1].model_copy(update={"precision": ("int8",)})
    content = {"description": "The default profile with int8.", "execution": [execution.model_dump(mode="json")]}
    INT8.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
    return INT8


def served_here(env: Mapping[str, str], folder: Path = ROOT) -> Served:
    """This service, to be entered; from another copy of it, where `folder` is one."""
    return Served([*BENTOML, ".", *ON_PORT], ready="/readyz", home=HOME, env=env, cwd=folder)


def multipart(body: bytes) -> bytes:
    """The picture as a form field."""
    return client.multipart("/classify", [body])


def raw(path: str) -> Callable[[bytes], bytes]:
    """The bytes as they are."""
    return lambda body: client.post(path, "image/jpeg" if body[:2] == b"\xff\xd8" else "application/octet-stream", body)


def kserve_json(*bodies: bytes) -> bytes:
    """The Open Inference Protocol in JSON, the pictures in base64."""
    data = [base64.b64encode(body).decode() for body in bodies]
    element = {"name": "image", "shape": [len(bodies)], "datatype": "BYTES", "data": data}
    return client.post("/v2/models/classify/infer", "application/json", json.dumps({"inputs": [element]}).encode())


def kserve_binary(*bodies: bytes) -> bytes:
    """The same with the pictures' bytes after the JSON, each with its length before it."""
    content = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    return _binary("classify", {"name": "image", "shape": [len(bodies), 1], "datatype": "BYTES"}, content)


def kserve_pixels(body: bytes) -> bytes:
    """The same with decoded pixels, as this service takes tensors."""
    return _binary("resnet50", {"name": "pixels", "shape": [1, 224, 224, 3], "datatype": "UINT8"}, body)


def _binary(model: str, element: dict[str, Any], content: bytes) -> bytes:
    head = json.dumps({"inputs": [{**element, "parameters": {"binary_data_size": len(content)}}]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}\r\n"
    return client.post(f"/v2/models/{model}/infer", "application/octet-stream", head + content, length)


def many(pictures: Sequence[bytes]) -> bytes:
    """The pictures as form fields of this service's batch endpoint."""
    return client.multipart("/classify_batch", pictures, field="images")


def top_class(answer: bytes) -> int:
    """The first class of the usual answer, or of the same as a string in an Open Inference Protocol answer."""
    said: Any = json.loads(answer)
    if isinstance(said, list):  # BentoML's batches answer each request with a list of one
        said = said[0]
    if "outputs" in said:
        said = json.loads(said["outputs"][0]["data"][0])
    return int(said["predictions"][0]["class_id"])


@dataclass(frozen=True, kw_only=True)
class System:
    """One system. `command` has PORT where the port goes; `env` is laid over what every peer is told of the model."""

    name: str
    shown: str
    kind: Kind
    command: tuple[str, ...]
    folder: Path
    ready: str
    requirements: str = ""  # the folder under `peers` whose requirements make its environment; "": this project's own
    request: Callable[[bytes], bytes] = multipart
    env: Mapping[str, str] = field(default_factory=dict)
    answers: bool = True  # with classes
    precision: str = "fp32"
    nets: tuple[str, ...] = ("resnet50", "near_empty")
    tensor: Callable[[bytes], bytes] | None = None  # how it takes pixels that are decoded already; None: as a picture
    batch: Callable[[Sequence[bytes]], bytes] | None = None  # how it takes several pictures in one request; None: it does not

    def start(self, model: Model, *, empty: bool = False) -> Served:
        """The server, to be entered. Makes its environment where there is none yet."""
        env = {
            "MODEL": str(model.onnx),
            "WEIGHTS": str(model.weights),
            "NET": model.name,
            "RESIZE": str(model.resize),
            "CPUS": str(available_cpus()),
            "THREADS": "1" if model.name == "near_empty" else str(available_cpus()),  # it is over before a second thread has begun
            "PYTHONPATH": COMMON,
            "TORCHINDUCTOR_CACHE_DIR": str(INDUCTOR),
            "ORTSERVE_MODEL": model.name,
            **self.env,
            **({"EMPTY": "1"} if empty else {}),
        }
        if self.precision == "int8":
            int8_profile()
        program, *arguments = self.command
        if (programs := self.programs()) is not None:
            program, env["PATH"] = str(programs / program), f"{programs}{os.pathsep}{os.environ['PATH']}"
        return Served([program, *arguments], ready=self.ready, home=HOME, env=env, cwd=self.folder)

    def programs(self) -> Path | None:
        """The folder of its environment's programs, made where it is not there yet; None where it runs in this project's own."""
        if not self.requirements:
            return None
        wanted = PEERS / self.requirements / "requirements.txt"
        return environment(self.requirements, wanted, borrow_torch=self.requirements == "fastapi")

    def ask(self, served: Served, body: bytes) -> int:
        """The top class of one picture, asked as the client asks."""
        head, content = self.request(body).split(b"\r\n\r\n", 1)
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        request = urllib.request.Request(f"http://127.0.0.1:{served.port}{first.split()[1]}", content, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return top_class(answer.read())


def _ours(name: str, profile: str, shown: str, **more: Any) -> System:
    return System(
        name=name,
        shown=shown,
        kind="ours",
        command=(*BENTOML, ".", *ON_PORT),
        folder=ROOT,
        ready="/readyz",
        env={"ORTSERVE_PROFILE": profile, "PYTHONPATH": ""},
        tensor=kserve_pixels,
        batch=many,
        **more,
    )


def _fastapi(name: str, shown: str, backend: str, *arguments: str, app: str = "app:app", kind: Kind = "reference", **more: Any) -> System:
    return System(
        name=name,
        shown=shown,
        kind=kind,
        command=(*UVICORN, *arguments, app),
        folder=PEERS / "fastapi",
        ready="/ready",
        requirements="fastapi",
        env={"BACKEND": backend, **more.pop("env", {})},
        **more,
    )


def _bentoml(name: str, shown: str, app: str, **env: str) -> System:
    folder = PEERS / app.rpartition(":")[2].lower()
    return System(
        name=name,
        shown=shown,
        kind="peer",
        command=(*BENTOML, app, *ON_PORT),
        folder=folder,
        ready="/readyz",
        env={**UNTRACED, **env},
    )


SYSTEMS: tuple[System, ...] = (
    System(
        name="nothing",
        shown="a server that does nothing (uvicorn)",
        kind="limit",
        command=(*UVICORN, "app:app"),
        folder=PEERS / "nothing",
        ready="/",
        requirements="fastapi",
        answers=False,
        nets=("near_empty",),
    ),
    _ours("default", "default", "this service, default profile"),
    _ours("light", "light", "this service, light profile", nets=("near_empty",)),
    _ours("latency", "latency", "this service, latency profile"),
    _ours("throughput", "throughput", "this service, throughput profile"),
    _ours("int8", str(INT8), "this service, default profile with int8", precision="int8", nets=("resnet50",)),
    _fastapi("pytorch", "PyTorch behind FastAPI", "eager"),
    _fastapi("torchscript", "TorchScript behind FastAPI", "script", nets=("resnet50",)),
    _fastapi("compile", "torch.compile behind FastAPI", "compile", nets=("resnet50",)),
    # One worker has every CPU for its one run at a time; two workers a CPU each, or their threads fight.
    _fastapi("ort", "ONNX Runtime behind FastAPI", "onnx"),
    _fastapi("ort2", "ONNX Runtime behind FastAPI, 2 workers", "onnx", "--workers", "2", env={"THREADS": "1"}),
    _fastapi("ort_tuned", "ONNX Runtime behind FastAPI, tuned", "onnx", app="tuned:app", request=raw("/classify")),
    _fastapi(
        "ort_tuned2",
        "ONNX Runtime behind FastAPI, tuned, 2 workers",
        "onnx",
        *("--workers", "2"),
        app="tuned:app",
        request=raw("/classify"),
        env={"THREADS": "1"},
    ),
    System(
        name="litserve",
        shown="LitServe",
        kind="peer",
        command=("python", "app.py"),
        folder=PEERS / "litserve",
        ready="/health",
        requirements="litserve",
    ),
    System(
        name="mosec",
        shown="Mosec",
        kind="peer",
        command=("python", "app.py", "--port", PORT, "--address", "127.0.0.1", "--timeout", "60000", "--log-level", "error"),
        folder=PEERS / "mosec",
        ready="/metrics",
        requirements="mosec",
        request=raw("/inference"),
    ),
    System(
        name="mlserver",
        shown="MLServer",
        kind="peer",
        command=("mlserver", "start", "."),
        folder=PEERS / "mlserver",
        ready="/v2/models/classify/ready",
        requirements="mlserver",
        request=kserve_json,
        batch=lambda pictures: kserve_json(*pictures),
        env={"MLSERVER_HTTP_PORT": PORT, "MLSERVER_GRPC_PORT": OTHER_PORT},
    ),
    System(
        name="pytriton",
        shown="PyTriton (Triton server)",
        kind="peer",
        command=("python", "app.py"),
        folder=PEERS / "pytriton",
        ready="/v2/models/classify/ready",
        requirements="pytriton",
        # Its Python backend loads libpython by name: this interpreter's, or it finds another with a library that does not fit.
        env={"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")), "WORKERS": "2", "THREADS": "1"},
        request=kserve_binary,
        batch=lambda pictures: kserve_binary(*pictures),
    ),
    _bentoml("batchable", "BentoML `batchable=True`", "service:Batchable"),
    _bentoml("batchable2", "BentoML `batchable=True`, 2 workers", "service:Batchable", WORKERS="2", THREADS="1"),
    _bentoml("split", "BentoML split by `bentoml.depends`", "service:Split"),
)
EMPTY = System(
    name="empty",
    shown="an empty `bentoml serve`",
    kind="limit",
    command=(*BENTOML, "service:Empty", *ON_PORT),
    folder=PEERS / "empty",
    ready="/readyz",
    answers=False,
)
BY_NAME = {system.name: system for system in (*SYSTEMS, EMPTY)}
