"""Ports for services that are started to be asked by whoever starts them."""

from __future__ import annotations

import random
import socket

# Below those that systems give to outgoing connections (Linux from 32768 on, others from 49152): one of these may be taken by anybody's
# connection between its choice and the start of the service, seconds later.
PORTS = range(20000, 32768)
_TRIES = 100
_random = random.SystemRandom()  # of nobody's seed: processes with the same one would choose the same at once


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing has. Raises OSError where every one it tried is taken."""
    for port in _random.sample(PORTS, min(_TRIES, len(PORTS))):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError(f"expected a free TCP port from {PORTS.start} to {PORTS.stop - 1}, each that was tried is taken: end what listens there")
