"""One service with small limits for all tests that send rubbish; after each of them the next caller's answer is still right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from ortserve.profile_file import SHIPPED
from tests.refusals import LIMITS, SEVEN
from tests.serving import Server


@pytest.fixture(scope="session")
def strict(digits_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with small limits, so that going over them is cheap."""
    profile = yaml.safe_load((SHIPPED / "default.yaml").read_text())
    profile["limits"] |= LIMITS
    file = tmp_path_factory.mktemp("profile") / "strict.yaml"
    file.write_text(yaml.safe_dump(profile))
    with Server(digits_home, env={"ORTSERVE_PROFILE": str(file)}) as server:
        yield server


@pytest.fixture
def client(strict: Server) -> Iterator[httpx.Client]:
    """A client of it. What a test did to the service, its neighbours' answers stay right, in the same processes."""
    before = {process.pid for process in strict.processes()}
    with httpx.Client(base_url=strict.base_url, timeout=30) as client:
        yield client
        answer = client.post("/classify", files={"image": SEVEN})
        assert answer.json()["predictions"][0]["label"] == "7"
    assert {process.pid for process in strict.processes()} == before
    assert "ERROR" not in strict.log()
    assert "Traceback" not in strict.log()
