"""The proof of the container, run by deploy/prove: build, look inside, run hardened, ask, load, stop under load, count what was lost."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from packaging.utils import canonicalize_name

from deploy.callers import Callers
from deploy.containers import CannotRun, Podman
from deploy.image import BENTOFILES, ROOT, build
from ortserve.tune.ports import free_port

BASE = "python:3.11-slim"  # what bentofile.yaml asks for
NAME = "ortserve-prove"
READY_S = 90.0
SITE = "app/.venv/lib/python3.11/site-packages"
FORBIDDEN = ("gcc", "cc", "make", "git", "gpg", "uv")  # executables an image that only serves has no use for
DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1"}  # what NVIDIA's runtime brings with the driver


class Proof:
    """The steps in their order, the seconds each took, and what was found: written to OUT/prove-VARIANT.json."""

    def __init__(self, variant: str, out: Path, podman: Podman) -> None:
        self.variant, self.out, self.podman = variant, out, podman
        self.image = f"localhost/ortserve:{variant}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.facts: dict[str, Any] = {
            "image": variant, "date": time.strftime("%Y-%m-%d"), "cpus": len(os.sched_getaffinity(0)), "seconds": {}
        }  # fmt: skip

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step, timed and told."""
        started = time.monotonic()
        yield
        seconds = self.facts["seconds"][name] = round(time.monotonic() - started, 1)
        print(f"{seconds:7.1f} s  {name}", flush=True)

    def note(self, **facts: Any) -> None:
        """Keep and tell what was found."""
        self.facts |= facts
        for name, value in facts.items():
            print(f"           {name.replace('_', ' ')}: {value}", flush=True)

    def run(self) -> None:
        """All of it. Raises AssertionError at the first thing that is not as it should be."""
        with self.step("base image"):
            self.podman.make_base_image(BASE)
        with self.step("build"):
            self.build()
        with self.step("look inside"):
            self.look_inside()
        if self.variant == "cuda":
            with self.step("CUDA libraries resolve"):
                self.resolve_cuda()
        with self.step("start until ready"):
            self.start()
        with self.step("held-back digits"):
            self.classify()
        with self.step("load"):
            self.load()
        with self.step("SIGTERM under load"):
            self.stop_under_load()
        if self.variant != "cpu":
            return
        if shutil.which("kubectl") is None:
            self.note(kubernetes="there is no kubectl here, so the cpu overlay's Deployment was not played")
            return
        with self.step("Deployment played"):
            subprocess.run([ROOT / "deploy/kubernetes/play", self.image, str(free_port()), str(free_port())], check=True)

    def build(self) -> None:
        """The bento, the image, its SBOM; in a store of its own."""
        os.environ["BENTOML_HOME"] = str(self.podman.folder / "bentoml")
        subprocess.run(
            [sys.executable, "-m", "bentoml", "models", "import", str(ROOT / "examples" / "digits.bentomodel")],
            stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        log = self.out / "build.log"
        print(f"           its log: {log.relative_to(ROOT)}", flush=True)
        with told_to(log):
            self.sbom = build(
                self.variant, tag=self.image, backend="podman", out=self.out, options=["isolation=chroot", "network=host"]
            )  # fmt: skip

    def look_inside(self) -> None:
        """Only what serves, nobody's secrets, the labels, the health check, the SBOM true; and what takes the size."""
        config = self.podman.inspect(self.image)
        assert config["User"] not in ("", "0", "root"), config["User"]
        assert config["Healthcheck"]["Test"][0] == "CMD"
        assert config["Labels"]["ortserve.variant"] == self.variant
        assert {"title", "version", "revision", "licenses"} <= {name.rpartition(".")[2] for name in config["Labels"]}
        assert {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"} <= set(config["Config"]["Env"])
        root = Path(self.podman("image", "mount", self.image).strip())
        try:
            found = {
                name for name in FORBIDDEN for folder in ("usr/bin", "usr/local/bin", "app/.venv/bin") if (root / folder / name).exists()
            }
            assert not found, f"the image holds {', '.join(sorted(found))}"
            site = root / SITE
            assert not [name for name in ("torch", "onnx", "onnxsim", "pip") if (site / name).exists()]
            installed = {path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")}
            pins = {f"{canonicalize_name(name)}-{version}" for name, _, version in (item.partition("-") for item in installed)}
            stated = {
                f"{item['name']}-{item['version']}"
                for item in json.loads(self.sbom.read_text())["components"] if item["type"] == "library"
            }  # fmt: skip
            assert pins == stated, f"the SBOM and the image differ: {sorted(pins ^ stated)}"
            sizes = {path.name: size(path) for path in site.iterdir() if path.is_dir()}
            nvidia = {f"nvidia/{path.name}": size(path) for path in (site / "nvidia").glob("*") if path.is_dir()}
            largest = sorted(((mib, name) for name, mib in {**sizes, **nvidia}.items() if name != "nvidia"), reverse=True)[:8]
            layers = [int(layer["size"]) for layer in json.loads(self.podman("history", "--format", "json", self.image))]
            self.note(
                image_mb=round(config["Size"] / 1e6),
                base_mb=round(max(layers[-1:]) / 1e6),
                packages=len(pins),
                largest_packages_mb={name: round(taken / 1e6) for taken, name in largest},
                bento_mb=round(size(root / "home" / "bentoml" / "bento") / 1e6, 1),
            )
        finally:
            self.podman("image", "umount", self.image)

    def resolve_cuda(self) -> None:
        """Every library of the CUDA provider is found in the image, but for those of the driver."""
        script = (
            f'export LD_LIBRARY_PATH=$(find /{SITE}/nvidia -name "*.so*" -printf "%h\\n" | sort -u | paste -sd:); '
            f"ldd /{SITE}/onnxruntime/capi/libonnxruntime_providers_cuda.so /{SITE}/onnxruntime/capi/libonnxruntime_providers_shared.so"
        )
        linked = self.podman("run", "--rm", "--network", "host", "--entrypoint", "sh", self.image, "-c", script)
        missing = set(re.findall(r"^\s*(\S+) => not found", linked, re.M))
        assert "libcudart" in linked, linked
        assert missing <= DRIVER, f"not in the image: {', '.join(sorted(missing - DRIVER))}"
        self.note(cuda_libraries_found=linked.count(" => /"), left_to_the_driver=sorted(missing))

    def start(self) -> None:
        """A container that may write to /tmp alone, waited for until it is ready and its health check passes."""
        self.podman(
            "run", "--detach", "--name", NAME, "--network", "host", "--env", f"BENTOML_PORT={self.port}",
            "--read-only", "--tmpfs", "/tmp:rw,noexec,nosuid,size=256m,mode=1777",
            "--cap-drop", "ALL", "--security-opt", "no-new-privileges", self.image,
        )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while not self._answers("/readyz"):
            assert self.podman.inspect(NAME)["State"]["Running"], f"the container ended:\n{self._log()}"
            assert time.monotonic() < deadline, f"not ready within {READY_S:g} s:\n{self._log()}"
            time.sleep(0.1)
        self.podman("healthcheck", "run", NAME)  # without systemd no timer runs it

    def classify(self) -> None:
        """The committed held-back digits: the file's name begins with what the picture shows."""
        right = 0
        pictures = sorted((ROOT / "examples" / "digits").glob("*.png"))
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for path in pictures:
                answer = client.post("/classify", content=path.read_bytes(), headers={"content-type": "image/png"})
                right += answer.raise_for_status().json()["predictions"][0]["label"] == path.name[0]
            metrics = client.get("/metrics").raise_for_status().text
            served = client.get("/models").json()["models"][0]
        assert right >= 0.95 * len(pictures), f"{right} of {len(pictures)} right"
        assert re.search(r"^ortserve_batch_size_rows_sum\S* (\d+)", metrics, re.M)[1] == str(len(pictures))  # type: ignore[index]
        self.note(digits_right=f"{right} of {len(pictures)}", provider=served["provider"])

    def load(self) -> None:
        """locust, with thresholds that fail the proof."""
        report = self.out / "locust.json"
        with report.open("wb") as out, (self.out / "locust.log").open("wb") as log:
            subprocess.run(
                [sys.executable, "-m", "locust", "--host", self.url, "--headless", "-u", "8", "-r", "8", "-t", "10s", "--json",
                 "--max-error-rate", "0", "--loglevel", "WARNING"],
                cwd=ROOT, stdout=out, stderr=log, stdin=subprocess.DEVNULL, check=True,
            )  # fmt: skip
        entries = json.loads(report.read_text())
        self.note(
            locust_requests=sum(entry["num_requests"] for entry in entries), locust_failures=sum(entry["num_failures"] for entry in entries)
        )
        assert self.facts["locust_requests"] > 0
        assert self.facts["locust_failures"] == 0

    def stop_under_load(self) -> None:
        """Not ready first, then nothing more accepted, everything accepted answered, status 0."""
        callers = Callers(f"{self.url}/classify", (ROOT / "examples" / "seven.png").read_bytes(), count=8)
        callers.wait_for(200)
        in_flight = callers.in_flight()
        told_at = time.monotonic()
        self.podman("kill", "--signal", "TERM", NAME)
        while self._answers("/readyz"):
            assert time.monotonic() - told_at < 5, "/readyz still says 200 five seconds after SIGTERM"
        unready_s = time.monotonic() - told_at
        before = callers.answered()
        callers.wait()
        status = int(self.podman("wait", NAME).strip())
        self.note(
            in_flight_at_sigterm=in_flight,
            seconds_to_not_ready=round(unready_s, 2),
            answered_while_not_ready=callers.answered() - before,
            answered=callers.answered(),
            refused=callers.refused,
            lost=len(callers.lost),
            exit_status=status,
        )
        assert not callers.lost, callers.lost[0]
        assert status == 0, f"exit status {status}:\n{self._log()}"
        assert callers.answered() > before

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(self.url + path, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _log(self) -> str:
        return "\n".join(self.podman("logs", NAME, check=False).splitlines()[-20:])


@contextmanager
def told_to(log: Path) -> Iterator[None]:
    """What commands say on standard error goes into that file; its last lines are shown where one failed."""
    kept = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    except subprocess.CalledProcessError:
        os.write(kept, b"\n".join(log.read_bytes().splitlines()[-20:]) + b"\n")
        raise
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def size(folder: Path) -> int:
    """Bytes of every file below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> None:
    """Read the options, prove, write the figures."""
    parser = argparse.ArgumentParser(prog="deploy/prove", description=__doc__)
    parser.add_argument("--image", choices=BENTOFILES, default="cpu")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "prove", help="folder for log, figures and SBOM (default: build/prove)"
    )
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is removed then too
    started = time.monotonic()
    try:
        assert shutil.which("podman"), "expected podman: run deploy/prove, which installs it"
        with Podman() as podman:
            proof = Proof(chosen.image, out, podman)
            proof.run()
    except CannotRun as error:
        sys.exit(f"prove: {error}")
    except (AssertionError, subprocess.CalledProcessError, httpx.HTTPError) as error:
        sys.exit(f"prove: failed: {error}")
    proof.note(total_s=round(time.monotonic() - started))
    (out / f"prove-{chosen.image}.json").write_text(json.dumps(proof.facts, indent=2) + "\n", encoding="utf-8")
    print(f"proved: the {chosen.image} image, {proof.facts['image_mb']} MB, lost nothing")


if __name__ == "__main__":
    main()
