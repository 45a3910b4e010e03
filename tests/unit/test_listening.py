"""Who waits at a listening socket, and that newcomers stay outside without a reset for those who are in."""

from __future__ import annotations

import socket
import sys
from contextlib import closing

import pytest

from ortserve.listening import turn_newcomers_away, waiting


@pytest.fixture
def listening() -> socket.socket:
    """A socket that listens and from which nobody accepts."""
    held = socket.create_server(("127.0.0.1", 0))
    held.setblocking(False)
    return held


def test_those_who_wait_are_counted(listening: socket.socket) -> None:
    with closing(listening):
        assert waiting(listening) == 0
        with closing(socket.create_connection(listening.getsockname())):
            assert waiting(listening) == (1 if sys.platform == "linux" else 0)
            listening.accept()[0].close()
            assert waiting(listening) == 0
        listening.shutdown(socket.SHUT_RDWR)
        assert waiting(listening) == 0


def test_newcomers_stay_outside_and_those_who_wait_are_served(listening: socket.socket) -> None:
    with closing(listening), closing(socket.create_connection(listening.getsockname())) as early, closing(socket.socket()) as late:
        if not turn_newcomers_away(listening):
            return  # a kernel that takes no filter from this process: tests/e2e/test_drain.py holds without one too
        late.settimeout(0.2)
        assert late.connect_ex(listening.getsockname()) != 0
        served, _ = listening.accept()
        with closing(served):
            early.sendall(b"hello")
            assert served.recv(5) == b"hello"


def test_another_kind_of_socket_is_left_alone() -> None:
    with closing(socket.socket(socket.AF_UNIX)) as other:
        assert turn_newcomers_away(other) is False
        assert waiting(other) == 0
