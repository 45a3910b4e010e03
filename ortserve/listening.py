"""A listening socket as the kernel knows it: how many wait there, and how newcomers are kept from it."""

from __future__ import annotations

import ctypes
import logging
import socket
import struct
import sys

logger = logging.getLogger("ortserve.drain")

_SO_ATTACH_FILTER = 26
_TCP_LISTEN = 10
# Classic BPF over the TCP header, linux/filter.h: code, jump if true, jump if false, operand.
_NO_NEWCOMERS = (
    (0x30, 0, 0, 13),  # A = the byte of flags
    (0x54, 0, 0, 0x12),  # A &= SYN | ACK
    (0x15, 0, 1, 0x02),  # SYN alone: somebody new
    (0x06, 0, 0, 0),  # dropped
    (0x06, 0, 0, 0xFFFFFFFF),  # anything else passes: handshakes under way end well
)


def turn_newcomers_away(listening: socket.socket) -> bool:
    """Let the kernel ignore new connections to that socket, whichever process accepts from it. False where it cannot (no Linux, no TCP).

    Dropped, not refused: a refusal could only be had by closing the socket, and that resets connections nobody has accepted yet. Where
    a process without privileges may set no filter, the socket is closed in the first moment in which none waits: some microseconds
    remain in which one could come in.
    """
    if not _is_linux_tcp(listening):
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_NEWCOMERS))
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_NO_NEWCOMERS), ctypes.addressof(program)))
    except OSError as error:
        logger.info("this kernel takes no socket filter from this process (%s): newcomers are refused a moment earlier", error)
        return False
    return True


def waiting(listening: socket.socket) -> int:
    """How many connections wait to be accepted there. 0 where the kernel does not tell, or nothing listens any more."""
    if not _is_linux_tcp(listening):
        return 0
    info = listening.getsockopt(
        socket.IPPROTO_TCP, socket.TCP_INFO, 32
    )  # linux/tcp.h: eight bytes, then rto, ato, snd_mss, rcv_mss, unacked
    return struct.unpack_from("I", info, 24)[0] if info[0] == _TCP_LISTEN else 0


def _is_linux_tcp(listening: socket.socket) -> bool:
    return sys.platform == "linux" and listening.family in (socket.AF_INET, socket.AF_INET6)
