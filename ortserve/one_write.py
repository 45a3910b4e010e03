"""A response in as few packets as it can be."""

from __future__ import annotations

import asyncio
from typing import Any

_CONTINUE = b"HTTP/1.1 100 "  # an interim answer (RFC 9110, 15.2.1), before the head and without a body


class OneWrite:
    """A transport for one response, whose head goes out with the first of its body: one system call and one packet in place of two.

    ASGI asks for it too: no part of a response is to be sent before the first event of its body.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._begun = False
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Keep the head for the next call; send anything else behind it."""
        if not self._begun and not data.startswith(_CONTINUE):
            self._begun, self._head = True, data
            return
        head, self._head = self._head, b""
        self._transport.write(head + data)

    def close(self) -> None:
        """Send what was kept, and close."""
        if self._head:
            self.write(b"")
        self._transport.close()
