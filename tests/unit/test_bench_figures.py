"""The bench's arithmetic: ratios are of one round, targets compare medians, and the machine's limit is told."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import tables, targets
from benchmarks.contenders import contenders
from benchmarks.figures import Figures, best_of, ranked, ratios
from benchmarks.targets import Target
from tests.bench_points import closed, point

# --- figures ----------------------------------------------------------------------------------------------------------


def test_ratios_are_of_the_same_round() -> None:
    assert ratios({0: 10.0, 1: 30.0, 2: 5.0}, {1: 10.0, 0: 20.0}) == [0.5, 3.0]
    assert ratios({0: 1.0}, {0: 0.0}) == []  # a peer that answered nothing is no measure


def test_the_best_of_each_round_may_be_another() -> None:
    assert best_of({"a": {0: 1.0, 1: 5.0}, "b": {0: 2.0, 1: 4.0, 2: 3.0}}) == {0: 2.0, 1: 5.0, 2: 3.0}
    assert best_of({"a": {0: 1.0}, "b": {0: 2.0}}, min) == {0: 1.0}
    assert ranked({"slow": {0: 1.0, 1: 9.0, 2: 2.0}, "fast": {0: 3.0}, "none": {}}) == ["fast", "slow"]


def test_bare_runs_count_by_their_best_setup_of_each_round() -> None:
    def setup(rate: float, p50: float, decoding: bool = False) -> dict[str, Any]:
        return {"threads": 2, "callers": 1, "batch": 1, "spinning": False, "decoding": decoding, "rows_per_s": rate, "p50_ms": p50}

    figures = Figures(
        [
            point("0/resnet50/bare/bare", "fp32", setups=[setup(20, 50), setup(22, 90), setup(18, 55, True), setup(17, 54, True)]),
            point("1/resnet50/bare/bare", "fp32", setups=[setup(24, 40), setup(12, 80), setup(30, 45, True)]),
            point("2/resnet50/bare/bare", "fp32", reason="it failed"),
        ]
    )
    assert figures.bare("resnet50") == {0: 22, 1: 24}  # 30 is with decoding, so not a bare run


def test_a_load_is_divided_by_the_mean_of_the_bare_runs_before_and_after_it() -> None:
    figures = Figures(
        [
            closed(0, "default", 36.0, beside=[{"rows_per_s": 38.0}, {"rows_per_s": 42.0}]),
            closed(1, "default", 36.0, beside=[{"rows_per_s": 38.0}, {"reason": "it failed"}]),
            closed(2, "default", 36.0),  # of a bench that has no use for them
        ]
    )
    assert figures.bare_beside("resnet50", "default", "closed 8") == {0: 40.0}
    assert named(figures, "`resnet50` fp32, 8 callers, over the best bare").values == (0.9,)


def test_one_caller_is_compared_with_the_bare_runs_that_took_turns_with_it() -> None:
    figures = Figures(
        [
            closed(0, "default", 30.0, "closed 1", p50_ms=50.0, in_turns_p50_ms=33.0, in_turns_bare_p50_ms=30.0),
            closed(1, "default", 30.0, "closed 1", p50_ms=50.0, in_turns_reason="it failed"),
        ]
    )
    assert named(figures, "default profile, 1 caller: p50 over bare").values == (1.1,)
    assert named(figures, "latency profile, 1 caller: p50 over bare").values == ()


def test_memory_is_the_peak_over_the_loads() -> None:
    points = [closed(0, "default", 1, load, pss_mib=mib) for load, mib in (("closed 1", 200.0), ("closed 8", 250.0), ("closed 64", 240.0))]
    assert Figures(points).peak_mib("resnet50", "default", ["closed 1", "closed 8", "closed 64"]) == {0: 250.0}


def test_why_a_system_has_no_figures_is_kept() -> None:
    figures = Figures([point("0/resnet50/mosec/closed", "start", reason="did not start: no such file")])
    assert figures.reason("resnet50", "mosec") == "did not start: no such file"
    assert figures.of("resnet50", "mosec", "closed 8", "requests_per_s") == {}
    result = {"measured_at": "2026-01-01", "machine": {"cpus": 2, "cpu": "x"}, "model": "m", "rounds": 1, "seconds_each": 1.0}
    assert "did not start: no such file" in tables.full(result, figures)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_a_target_compares_its_median_and_shows_its_spread() -> None:
    assert Target("x", 0.95, True, (0.9, 0.96, 0.99)).met
    assert not Target("x", 0.95, True, (0.9, 0.94, 0.99)).met
    assert Target("x", 1.0, False, (0.5, 1.0, 7.0)).met
    assert Target("x", 1.0, True, ()).met is None
    assert Target("x", 0.95, True, (0.9, 0.94, 0.99)).row() == "| x | >= 0.95 | 0.94 | 0.90 to 0.99 |  | **missed** |"
    assert "not measured" in Target("x", 1.0, True, ()).row()


def test_a_target_that_the_machine_does_not_allow_says_so() -> None:
    beyond, within = Target("x", 2.0, True, (1.5,), best=(1.7, 1.8, 2.5)), Target("x", 0.5, False, (0.7,), best=(0.4,))
    assert beyond.row() == "| x | >= 2 | 1.50 | 1.50 to 1.50 | 1.80 | **missed**, out of reach here |"
    assert within.row() == "| x | <= 0.5 | 0.70 | 0.70 to 0.70 | 0.40 | **missed** |"
    assert Target("x", 2.0, True, (2.1,), best=(1.8,)).row().endswith("| 1.80 | met |")  # noise may pass a limit; met is met
    assert "0 of 2 targets met; 1 of the others out of reach here." in targets.table([beyond, within])


def test_the_limit_is_the_same_ratio_for_what_the_bare_session_and_decoding_do_in_that_round() -> None:
    def bare(turn: int, case: str, precision: str, *setups: dict[str, Any]) -> dict[str, Any]:
        return point(f"{turn}/{case}/bare/bare", precision, setups=list(setups))

    def setup(rate: float, decoding: bool = False, cpu_s: float = 0.1) -> dict[str, Any]:
        same = {"threads": 2, "callers": 1, "batch": 1, "spinning": False, "p50_ms": 40.0}
        return {**same, "decoding": decoding, "rows_per_s": rate, "cpu_s_per_row": cpu_s}

    near = {"case": "near_empty"}
    figures = Figures(
        [
            bare(0, "resnet50", "int8", setup(36.0)),
            bare(
                0, "near_empty", "fp32", setup(9000.0), setup(400.0, decoding=True, cpu_s=0.0025), setup(410.0, decoding=True, cpu_s=0.004)
            ),
            bare(1, "near_empty", "fp32", setup(390.0, decoding=True, cpu_s=0.005)),
            *(closed(turn, "default", 20.0, beside=[setup(rate), setup(rate)]) for turn, rate in enumerate((20.0, 30.0))),
            *(closed(turn, "pytorch", 10.0) for turn in (0, 1)),
            *(closed(turn, "mosec", rate) for turn, rate in enumerate((16.0, 8.0))),
            closed(0, "pytriton", 19.0),  # in one round alone: not compared
            closed(0, "mosec", 500.0, server_cpu_s_per_request=0.004, **near),
            closed(0, "light", 700.0, server_cpu_s_per_request=0.003, **near),
        ]
    )
    most = (2 / (2 / 20 + 0.0025), 2 / (2 / 30 + 0.005))  # pictures per second on two CPUs that decode them, too
    assert named(figures, "`resnet50` fp32, 8 callers, over PyTorch").best == pytest.approx((most[0] / 10, most[1] / 10))
    peers = named(figures, "`resnet50` fp32, 8 callers, over the best peer").best
    assert peers == pytest.approx((most[0] / 16, most[1] / 10))  # in the second round PyTorch is the best
    assert named(figures, "`resnet50` fp32, 8 callers, over the best bare").best == pytest.approx((most[0] / 20, most[1] / 30))
    assert named(figures, "`resnet50` int8, 8 callers, over PyTorch").best == pytest.approx((2 / (2 / 36 + 0.0025) / 10,))
    throughput = named(figures, "near-empty model, light profile, 8 callers, over the best peer")
    assert (throughput.values, throughput.best) == ((1.4,), pytest.approx((2 / 0.0025 / 500,)))
    cpu = named(figures, "near-empty model, light profile, 8 callers: server CPU")
    assert (cpu.values, cpu.best) == (pytest.approx((0.75,)), pytest.approx((0.625,)))


def test_who_is_near_the_best_or_the_thriftiest_goes_on() -> None:
    figures = Figures(
        [
            closed(0, "litserve", 100.0, server_cpu_s_per_request=0.05, pss_mib=700.0),
            closed(0, "mosec", 90.0, server_cpu_s_per_request=0.05, pss_mib=400.0),
            closed(0, "ort", 50.0, server_cpu_s_per_request=0.04, pss_mib=400.0),
            closed(0, "mlserver", 50.0, server_cpu_s_per_request=0.05, pss_mib=300.0),
            closed(0, "pytriton", 89.0, server_cpu_s_per_request=0.05, pss_mib=400.0),
            closed(0, "batchable", 0.0, server_cpu_s_per_request=0.0, pss_mib=10.0),  # answered nothing
            closed(0, "split", 99.0, "closed 64", pss_mib=400.0),  # near the best at a load that nobody compares
            closed(0, "default", 200.0, server_cpu_s_per_request=0.01, pss_mib=100.0),
        ]
    )
    assert contenders(figures, "resnet50", (8, 32)) == ["ort", "litserve", "mosec", "mlserver"]
    assert contenders(Figures([]), "resnet50", (8, 32)) == []


def named(figures: Figures, start: str) -> Target:
    """The one target whose text begins so."""
    (found,) = [target for target in targets.targets(figures, 2) if target.what.startswith(start)]
    return found


def test_the_best_peer_is_the_best_of_each_round_and_never_a_limit_or_ours() -> None:
    figures = Figures(
        [
            *(closed(turn, "default", 20.0) for turn in (0, 1)),
            *(closed(turn, "nothing", 9000.0) for turn in (0, 1)),
            *(closed(turn, "int8", 90.0) for turn in (0, 1)),
            closed(0, "mosec", 10.0),
            closed(1, "mosec", 16.0),
            closed(0, "litserve", 16.0),
            closed(1, "litserve", 10.0),
        ]
    )
    assert named(figures, "`resnet50` fp32, 8 callers, over the best peer").values == (1.25, 1.25)


def test_cpu_is_compared_with_the_thriftiest_peer_that_answered() -> None:
    near = {"case": "near_empty"}
    figures = Figures(
        [
            closed(0, "default", 500, server_cpu_s_per_request=0.002, **near),
            closed(0, "mosec", 300, server_cpu_s_per_request=0.005, **near),
            closed(0, "litserve", 200, server_cpu_s_per_request=0.004, **near),
            closed(0, "split", 0, server_cpu_s_per_request=0.0001, **near),
        ]
    )
    assert named(figures, "near-empty model, default profile, 8 callers: server CPU").values == (0.5,)


def test_overload_is_compared_with_the_capacity_just_before_and_just_after() -> None:
    session = "0/near_empty/default/open"
    figures = Figures(
        [
            point(session, "closed 32", requests_per_s=900.0, failed=0),
            closed(0, "default", 800.0, "closed 32", case="near_empty"),
            point(session, "open 400", requests_per_s=490.0, p99_ms=5000.0, failed_p50_ms=3.0, failed=9, capacity_beside_per_s=[520, 480]),
        ]
    )
    assert named(figures, "400 % of capacity, near-empty model, default profile: goodput").values == (0.98,)
    assert named(figures, "400 % of capacity, near-empty model, default profile: p99").values == (0.5,)
    assert named(figures, "400 % of capacity, near-empty model, default profile: median time").values == (3.0,)
    assert named(figures, "errors below capacity").values == (0.0,)  # refusals past it are no errors


def test_what_the_server_no_longer_answered_just_after_was_not_below_capacity() -> None:
    session = "0/near_empty/light/open"

    def errors(again: float) -> Any:
        near = point(session, "open 95", requests_per_s=700.0, failed=7, rate=950.0, capacity_beside_per_s=[1000.0, again])
        return named(Figures([point(session, "open 80", requests_per_s=800.0, failed=0, rate=800.0), near]), "errors below capacity")

    assert errors(950.0).values == (7,)  # it could have answered them
    assert errors(949.0).values == (0,)
    assert "1 of 2 windows left out" in errors(949.0).what
    assert "left out" not in errors(950.0).what


def test_memory_takes_each_server_without_a_model_off() -> None:
    figures = Figures(
        [
            closed(0, "default", 20, pss_mib=300.0),
            closed(0, "mosec", 20, pss_mib=250.0),
            closed(0, "batchable", 20, pss_mib=340.0),
            point("0/near_empty/empty/memory/empty", "start", pss_mib=150.0),
            point("0/near_empty/mosec/memory/empty", "start", pss_mib=50.0),
        ]
    )
    # Mosec's 200 over its own empty server; BentoML's batching, 190 over BentoML's empty one, is the leanest.
    assert named(figures, "`resnet50`: peak memory").values == pytest.approx((150 / 190,))
