"""Stacks of a profile become parts: each sample goes to one, and each thread's samples divide the seconds that the kernel counts for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import profiles
from benchmarks.stacks import DECODE, HTTP, LOGS, METRICS, MODEL, PARTS, RESIZE, REST, ROUTES, THREADS, folded, part_of

SAMPLE = Path(__file__).with_name("stacks.txt").read_text(encoding="utf-8").splitlines()  # of this service, by py-spy
FOUND = (RESIZE, DECODE, RESIZE, THREADS, MODEL, HTTP, ROUTES, THREADS, ROUTES, ROUTES, DECODE, METRICS)


@pytest.mark.parametrize(("line", "part"), list(zip(SAMPLE, FOUND, strict=True)), ids=lambda value: value.rpartition(";")[2])
def test_the_innermost_frame_that_is_known_decides(line: str, part: str) -> None:
    assert part_of(line.rpartition(" ")[0].split(";")[1:]) == part


def test_frames_of_other_servers_find_their_part_too() -> None:
    assert part_of(["_worker (concurrent/futures/thread.py:83)", "pixels (shared.py:32)"]) == RESIZE
    assert part_of(["pixels (shared.py:26)", "open (PIL/Image.py:3704)"]) == DECODE
    assert part_of(["Runner.run (asyncio/runners.py:118)", "Starlette.__call__ (starlette/applications.py:96)"]) == ROUTES
    assert part_of(["respond (ortserve/routes.py:1)", "StreamHandler.emit (logging/__init__.py:1103)"]) == LOGS
    assert part_of(["load (ortserve/images.py:73)", "bilinear (ortserve/resample.py:9)"]) == RESIZE
    assert part_of(["load (ortserve/images.py:73)", "function (ortserve/jpeg.py:9)"]) == DECODE
    assert part_of(["sleep (mine.py:1)"]) == REST


def test_samples_divide_the_seconds_of_their_thread() -> None:
    lines = [
        "thread (7): decode_0;load (ortserve/images.py:1);Image.resize (PIL/Image.py:2440) 30",
        "thread (7): decode_0;load (ortserve/images.py:1);ImageFile.load (PIL/ImageFile.py:425) 10",
        "thread (8): MainThread;Runner.run (asyncio/runners.py:118) 500",  # hardly ever on a CPU, whatever py-spy took it for
        "thread (9): Dummy-1 3",  # of ONNX Runtime's, while it called back
        "thread (0x7F12): decode_1;ImageFile.load (PIL/ImageFile.py:425) 99",  # no number of the kernel's
    ]
    found = folded(lines, {7: 2.0, 8: 0.1, 9: 0.5, 10: 0.7}, {9: "python", 10: "jpeg"})  # 9 has no Python frame: ONNX Runtime's; 10 is ours
    assert list(found) == list(PARTS)
    assert {part: seconds for part, seconds in found.items() if seconds} == pytest.approx({RESIZE: 1.5, DECODE: 1.2, HTTP: 0.1, MODEL: 0.5})


def test_the_sample_keeps_every_second() -> None:
    threads = {int(line.split("(", 1)[1].split(")", 1)[0]) for line in SAMPLE}
    assert sum(folded(SAMPLE, dict.fromkeys(threads, 1.5), {}).values()) == pytest.approx(1.5 * len(threads))


@pytest.mark.parametrize("line", ["ImageFile.load (PIL/ImageFile.py:425) 10", "thread (7): a;b (c.py:1)", ""])
def test_a_line_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="expected `thread"):
        folded([line], {}, {})


def test_the_table_has_the_milliseconds_and_shares_of_each_system(tmp_path: Path) -> None:
    one = {"shown": "near-empty model: x, 32 callers", "cpu_ms_per_request": 3.0, "requests_per_s": 600.0}
    shares = dict.fromkeys(PARTS, 0.0) | {DECODE: 0.75, HTTP: 0.25}
    result = {
        "measured_at": "2026-01-01",
        "machine": {"cpus": 2, "cpu": "x"},
        "model": "m",
        "seconds_each": 1.0,
        "profiles": [one | {"shares": shares}],
    }
    profiles.write(result, tmp_path)
    text = (tmp_path / "profiles.md").read_text(encoding="utf-8")
    assert "| near-empty model: x, 32 callers | 2.25 (75%) | 0.00 (0%) | 0.00 (0%) | 0.75 (25%) |" in text
    assert "| 3.00 | 600 |" in text
    assert 0 < (tmp_path / "profiles.png").stat().st_size < 300_000
