"""Ctrl-C of a build: it ends at once, or, where a library lost that, before the next stage."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Iterator

import pytest
from rich.console import Console

from ortserve.export.interrupt import Interrupt
from ortserve.export.report import Screen


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_ends_what_runs() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_that_was_lost_ends_the_build_before_the_next_stage() -> None:
    with Interrupt() as interrupt:
        screen = Screen(Console(file=(written := io.StringIO())), interrupt)
        with screen.stage("load"), contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), screen.stage("export"):
            pytest.fail("a stage began after Ctrl-C")
    assert "export" not in written.getvalue()


def test_without_one_stages_follow_each_other() -> None:
    with Interrupt() as interrupt:
        screen = Screen(Console(file=(written := io.StringIO())), interrupt)
        for name in ("load", "export"):
            with screen.stage(name):
                pass
    assert [line.split()[0] for line in written.getvalue().splitlines()] == ["load", "load", "export", "export"]


def test_a_job_that_ignores_it_goes_on_ignoring_it() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        interrupt.check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
