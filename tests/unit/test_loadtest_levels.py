"""How much of the load is there when."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from loadtest.levels import length_s, level


@dataclass
class Options:
    shape: str
    ramp_s: float = 60.0
    spike_base: float = 0.1
    spike_after_s: float = 20.0
    spike_s: float = 10.0


@pytest.mark.parametrize(
    ("shape", "elapsed_s", "share"),
    [
        ("constant", 0, 1),
        ("constant", 1e6, 1),
        ("ramp", 0, 0),
        ("ramp", 15, 0.25),
        ("ramp", 90, 1),
        ("spike", 19.9, 0.1),
        ("spike", 20, 1),
        ("spike", 29.9, 1),
        ("spike", 30, 0.1),
    ],
)
def test_the_share_of_the_load(shape: str, elapsed_s: float, share: float) -> None:
    assert level(Options(shape), elapsed_s) == pytest.approx(share)


def test_a_ramp_of_no_length_is_everything_at_once() -> None:
    assert level(Options("ramp", ramp_s=0), 0) == 1


@pytest.mark.parametrize(("shape", "seconds"), [("constant", None), ("ramp", 75), ("spike", 50)])
def test_how_long_it_takes_by_itself(shape: str, seconds: float | None) -> None:
    assert length_s(Options(shape)) == seconds
