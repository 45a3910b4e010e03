"""One service on `digits` for all end-to-end tests that only ask it; whoever needs another way of running starts a `Server` of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import Server


@pytest.fixture(scope="session")
def digits(digits_home: Path) -> Iterator[Server]:
    """A ready service on the default profile."""
    with Server(digits_home) as server:
        yield server


@pytest.fixture
def client(digits: Server) -> Iterator[httpx.Client]:
    """A client of that service."""
    with httpx.Client(base_url=digits.base_url, timeout=60) as client:
        yield client


@pytest.fixture
def left_to_the_garbage_collector() -> Iterator[None]:
    """BentoML 1.4.39's clients leave their folder behind for it: let that happen where its warning is ignored."""
    yield
    gc.collect()
