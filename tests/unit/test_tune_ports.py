"""Ports: none that an outgoing connection may have, none that is taken, and nothing found where all are."""

from __future__ import annotations

import socket
from contextlib import closing
from types import SimpleNamespace

import pytest

from ortserve.tune import ports


def test_it_is_free_and_no_connection_is_given_it() -> None:
    port = ports.free_port()
    assert 1024 <= port < 32768
    with closing(socket.create_server(("127.0.0.1", port))):
        pass


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_random", SimpleNamespace(sample=lambda among, _: list(among)))
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(port, port + 20))
        assert port < ports.free_port() < port + 20
        monkeypatch.setattr(ports, "PORTS", range(port, port + 1))
        with pytest.raises(OSError, match=f"expected a free TCP port from {port} to {port}, each that was tried is taken"):
            ports.free_port()
