"""Several real worker processes in one folder: they add up, the dead keep their counts, and a fold survives its own death."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from ortserve import multiprocess

pytestmark = pytest.mark.integration

FORKSERVER = multiprocessing.get_context("forkserver")  # a clean process to fork from: fast, and no thread of the tests in it
FORKSERVER.set_forkserver_preload(["ortserve.metrics", "prometheus_client.multiprocess", "pytest"])
SERVICE = {"service_name": "s", "service_version": "v", "runner_name": "s"}


def serve(folder: Path, orders: Connection) -> None:
    """A worker: does what it is told, answers "done", until it is killed or told to stop."""
    multiprocess.enter(folder)
    from ortserve.gpu import GpuReading
    from ortserve.metrics import Metrics

    metrics = Metrics(service="s", version="v")
    model = metrics.for_model("digits")
    metrics.started()
    metrics.describe(model="digits", version="1", task="t", precision="fp32", sha256="00", provider="CPU", onnxruntime_version="1")
    orders.send("ready")
    while (order := orders.recv()) != "stop":
        if order == "request":
            metrics.request_started("/classify")
            model.decoded(0.004)
            model.refused("queue_full")
        elif order == "gpu":
            metrics.gpus([GpuReading(0, "fake", 0.5, 1000, 4000)])
        orders.send("done")


class Worker:
    """A worker process and the line to it."""

    def __init__(self, folder: Path) -> None:
        self.orders, far = FORKSERVER.Pipe()
        self.process = FORKSERVER.Process(target=serve, args=(folder, far), daemon=True)
        self.process.start()
        far.close()
        assert self.orders.recv() == "ready"

    def do(self, order: str, times: int = 1) -> None:
        """Have it carry out an order and wait until it has."""
        for _ in range(times):
            self.orders.send(order)
            assert self.orders.recv() == "done"

    def kill(self) -> None:
        """SIGKILL, as the kernel's memory killer does; back when it is gone."""
        self.process.kill()
        self.process.join()
        self.orders.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    """Starts workers in `tmp_path`; those that still live are killed at the end."""
    workers: list[Worker] = []

    def begin() -> Worker:
        workers.append(Worker(tmp_path))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.kill()


def read(folder: Path, name: str, **labels: str) -> float | None:
    """The value of that sample over all workers, None where there is no such series."""
    found = [
        sample.value
        for family in multiprocess.collect(folder)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) <= 1, f"{name}{labels} is ambiguous: {found}"
    return found[0] if found else None


def refusals(folder: Path) -> float:
    """All refusals for a full queue."""
    return read(folder, "ortserve_refusals_total", model="digits", reason="queue_full") or 0.0


def test_living_workers_add_up(tmp_path: Path, start: Callable[[], Worker]) -> None:
    one, two = start(), start()
    one.do("request", 3)
    two.do("request", 4)
    assert refusals(tmp_path) == 7
    assert read(tmp_path, "ortserve_decode_duration_seconds_count", model="digits") == 7
    assert read(tmp_path, "ortserve_decode_duration_seconds_sum", model="digits") == pytest.approx(0.028, rel=1e-9)
    assert read(tmp_path, "bentoml_service_request_in_progress", **SERVICE) == 7
    assert read(tmp_path, "ortserve_workers") == 2
    assert read(tmp_path, "ortserve_provider_active_workers", model="digits", provider="CPU") == 2
    assert read(tmp_path, "ortserve_model_info", model="digits") == 1  # not summed


def test_a_gpu_is_not_summed_over_the_workers_that_read_it(tmp_path: Path, start: Callable[[], Worker]) -> None:
    for worker in (start(), start()):
        worker.do("gpu")
    assert read(tmp_path, "ortserve_gpu_memory_used_bytes", gpu="0") == 1000


def test_a_killed_workers_counts_stay_and_its_gauges_vanish(tmp_path: Path, start: Callable[[], Worker]) -> None:
    one, two = start(), start()
    one.do("request", 3)
    one.do("gpu")
    two.do("request", 4)
    last = read(tmp_path, "bentoml_service_last_request_timestamp_seconds", **SERVICE)
    two.kill()
    one.kill()
    survivor = start()
    survivor.do("request")
    for _ in range(3):  # a fold that is read again counts no one twice
        assert refusals(tmp_path) == 8
    assert read(tmp_path, "ortserve_decode_duration_seconds_bucket", model="digits", le="+Inf") == 8
    assert read(tmp_path, "bentoml_service_request_in_progress", **SERVICE) == 1
    assert read(tmp_path, "ortserve_workers") == 1
    assert read(tmp_path, "ortserve_gpu_memory_used_bytes", gpu="0") is None
    now = read(tmp_path, "bentoml_service_last_request_timestamp_seconds", **SERVICE)
    assert now is not None
    assert last is not None
    assert last <= now <= time.time()  # the latest of three, not their sum


def test_a_replaced_worker_counts_as_a_start_and_leaves_the_service_its_age(tmp_path: Path, start: Callable[[], Worker]) -> None:
    first = start()
    began = read(tmp_path, "ortserve_start_time_seconds", service_name="s", service_version="v")
    assert began
    for _ in range(2):
        first.kill()
        first = start()
    assert read(tmp_path, "ortserve_worker_starts_total") == 3
    assert read(tmp_path, "ortserve_start_time_seconds", service_name="s", service_version="v") == began
    assert read(tmp_path, "ortserve_workers") == 1


def test_the_files_of_the_living_are_not_touched(tmp_path: Path, start: Callable[[], Worker]) -> None:
    living, dead = start(), start()
    identity = multiprocess.process_id(living.process.pid or 0)
    before = {path.name: path.stat().st_ino for path in tmp_path.glob(f"*_{identity}.db")}
    assert len(before) >= 4
    dead.kill()
    multiprocess.sweep(tmp_path)
    assert {path.name: path.stat().st_ino for path in tmp_path.glob(f"*_{identity}.db")} == before
    living.do("request", 5)
    assert refusals(tmp_path) == 5


def test_the_folder_stays_small_however_many_workers_die(tmp_path: Path, start: Callable[[], Worker]) -> None:
    sizes = []
    for number in range(1, 51):
        worker = start()
        worker.do("request", number % 3)
        worker.kill()
        multiprocess.sweep(tmp_path)
        sizes.append((len(list(tmp_path.iterdir())), sum(path.stat().st_size for path in tmp_path.iterdir())))
    assert refusals(tmp_path) == sum(number % 3 for number in range(1, 51))
    assert sizes[-1] == sizes[2]
    assert {path.name for path in tmp_path.iterdir()} == {
        "lock",
        "counter_dead.db",
        "histogram_dead.db",
        "gauge_max_dead.db",
        "gauge_min_dead.db",
    }


def test_a_pid_handed_out_again_is_not_taken_for_the_dead_worker(tmp_path: Path, start: Callable[[], Worker]) -> None:
    worker = start()
    worker.do("request", 3)
    identity = multiprocess.process_id(worker.process.pid or 0)
    worker.kill()
    for path in tmp_path.glob(f"*_{identity}.db"):  # as if this very process had got the dead worker's pid
        path.rename(path.with_name(path.name.replace(str(identity), f"{os.getpid()}-1")))
    assert refusals(tmp_path) == 3
    assert read(tmp_path, "ortserve_workers") is None
    assert not list(tmp_path.glob(f"*{os.getpid()}*"))


def test_a_process_that_is_dead_but_not_reaped_is_dead() -> None:
    assert multiprocess.process_id(os.getpid()) == multiprocess.process_id(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert multiprocess.process_id(process.pid) is None


def fork_and_count(folder: Path) -> None:
    """Count once here and twice in a forked child, which must write to a file of its own."""
    multiprocess.enter(folder)
    from ortserve.metrics import Metrics

    model = Metrics(service="s", version="v").for_model("digits")
    model.refused("queue_full")
    child = os.fork()
    model.refused("queue_full")
    if child == 0:
        model.refused("queue_full")
        os._exit(0)
    os.waitpid(child, 0)


def test_a_fork_counts_apart_from_its_parent(tmp_path: Path) -> None:
    process = FORKSERVER.Process(target=fork_and_count, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert refusals(tmp_path) == 4


def sweep_and_die(folder: Path, step: int, steps: Connection) -> None:
    """Sweep, and be killed right before the `step`-th thing that changes the folder; tells how many there were if it lived."""
    from prometheus_client.mmap_dict import MmapedDict

    taken = 0

    def deadly(change: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal taken
            taken += 1
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return call

    for owner, names in ((Path, ("replace", "unlink", "write_text")), (MmapedDict, ("__init__", "write_value"))):
        for name in names:
            setattr(owner, name, deadly(getattr(owner, name)))
    multiprocess.sweep(folder)
    steps.send(taken)


def sweep_elsewhere(folder: Path, step: int) -> int | None:
    """Run `sweep_and_die` in a process of its own: how many steps it took, None where it was killed."""
    near, far = FORKSERVER.Pipe()
    process = FORKSERVER.Process(target=sweep_and_die, args=(folder, step, far))
    process.start()
    far.close()
    process.join()
    if process.exitcode == 0:
        return int(near.recv())
    assert process.exitcode == -signal.SIGKILL
    return None


def test_a_sweep_killed_at_any_step_loses_and_doubles_nothing(tmp_path: Path) -> None:
    origin, folder = tmp_path / "origin", tmp_path / "copy"
    origin.mkdir()
    for requests in (6, 2):
        worker = Worker(origin)
        worker.do("request", requests)
        worker.kill()
        if requests == 6:
            multiprocess.sweep(origin)  # something is folded already when the sweep under test begins
    shutil.copytree(origin, folder)
    total = sweep_elsewhere(folder, 0)
    assert total is not None
    assert refusals(folder) == 8
    shutil.rmtree(folder)
    for step in (1, 2, total // 2, *range(total - 12, total + 1)):  # between them hundreds of values are written, one like the other
        shutil.copytree(origin, folder)
        assert sweep_elsewhere(folder, step) is None
        for _ in range(2):
            assert refusals(folder) == 8, f"killed before step {step} of {total}"
            assert read(folder, "ortserve_decode_duration_seconds_count", model="digits") == 8
        assert {path.name for path in folder.iterdir()} == {
            "lock",
            "counter_dead.db",
            "histogram_dead.db",
            "gauge_max_dead.db",
            "gauge_min_dead.db",
        }
        shutil.rmtree(folder)


def test_a_damaged_file_of_a_dead_worker_costs_only_its_own_counts(tmp_path: Path, start: Callable[[], Worker]) -> None:
    one, two = start(), start()
    one.do("request", 3)
    two.do("request", 4)
    identity = multiprocess.process_id(one.process.pid or 0)
    one.kill()
    two.kill()
    (tmp_path / f"counter_{identity}.db").write_bytes((4096).to_bytes(4, "little") + b"\xff" * 5000)
    (tmp_path / f"histogram_{identity}.db").write_bytes(b"")  # killed between creating it and growing it
    assert refusals(tmp_path) == 4
    assert read(tmp_path, "ortserve_decode_duration_seconds_count", model="digits") == 4


def scrape_until(folder: Path, stop: threading.Event, faults: list[str]) -> None:
    """Read again and again; note every step back of a counter."""
    highest = 0.0
    while not stop.is_set():
        now = refusals(folder)
        if now < highest:
            faults.append(f"{now} after {highest}")
        highest = now


def scraper(folder: Path, stop: threading.Event, answer: Connection) -> None:
    """`scrape_until` in a process of its own; its faults go through the pipe."""
    faults: list[str] = []
    scrape_until(folder, stop, faults)
    answer.send(faults)


def test_readers_of_several_processes_and_threads_never_see_a_counter_go_back(tmp_path: Path, start: Callable[[], Worker]) -> None:
    stop = FORKSERVER.Event()
    near, far = FORKSERVER.Pipe()
    process = FORKSERVER.Process(target=scraper, args=(tmp_path, stop, far))
    process.start()
    far.close()
    faults: list[str] = []
    threads = [threading.Thread(target=scrape_until, args=(tmp_path, stop, faults)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        worker = start()
        worker.do("request", 10)
        worker.kill()
    stop.set()
    for thread in threads:
        thread.join()
    faults += near.recv()
    process.join()
    assert faults == []
    assert refusals(tmp_path) == 100
