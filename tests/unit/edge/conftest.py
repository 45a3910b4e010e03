"""An edge for each test, and a log whose records name their request."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from ortserve import logs
from tests.site import Site


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture(autouse=True)
def _request_ids_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Records carry the id of the request that they were written under, as the service's handler makes them."""

    def add(record: logging.LogRecord) -> bool:
        record.request_id = logs.request_id.get()
        return True

    caplog.handler.addFilter(add)
    with caplog.at_level(logging.INFO):
        yield
