"""A response's head goes out with the first of its body."""

from __future__ import annotations

from typing import Any

import pytest

from ortserve.one_write import OneWrite


class Written:
    """A transport that notes each system call it would make."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def one_write() -> tuple[Written, Any]:
    written = Written()
    return written, OneWrite(written)  # type: ignore[arg-type]


def test_a_head_goes_out_with_the_first_of_its_body() -> None:
    written, transport = one_write()
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert written.calls == [b"HTTP/1.1 100 Continue\r\n\r\n"]  # the body that it asks for comes only then
    transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert len(written.calls) == 1
    transport.write(b"HTTP/1.1 100 as the body says")
    transport.write(b" and more")
    assert written.calls[1:] == [b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 100 as the body says", b" and more"]
    assert not transport.is_closing()


@pytest.mark.parametrize("body", [True, False])
def test_a_close_sends_what_was_kept(body: bool) -> None:
    written, transport = one_write()
    transport.write(b"head")
    if body:
        transport.write(b"")
    transport.close()
    assert written.calls == [b"head"]
    assert written.closed
