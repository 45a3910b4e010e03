"""A process of uvicorn whose event loop has all it can do, and many who connect to it at once."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from ortserve.tune.ports import free_port
from tests.serving import ROOT, refuses, until

CALLERS = 60
# Every answer takes the loop twenty milliseconds, and says how many connections it had accepted by then.
SERVER = """
import sys, time
import uvicorn
from ortserve import connection
from ortserve.accepting import Accepting
from ortserve.drain import Drain

drain = Drain(0.0, leave=lambda: None, at_once=lambda: True, parent_lives=lambda: True)
made = []

class Counted(connection.Connection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        made.append(self)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        drain.arm()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/hold":
        print("held", flush=True)
        time.sleep(1)
    time.sleep(0.02)
    body = b"%4d" % len(made)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4"), (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})

connection.install(None, Accepting(drain.listening, sharing=1))
connection.Connection = Counted
uvicorn.run(app, port=int(sys.argv[1]), http="auto", loop="uvloop", log_level="error", access_log=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many wait")
def test_who_connects_to_a_busy_process_does_not_wait_for_a_turn_of_each_before() -> None:
    port = free_port()
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], cwd=ROOT, stdout=subprocess.PIPE) as server, ExitStack() as stack:
        stack.callback(server.kill)
        until(lambda: not refuses(port))
        holding = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        holding.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        assert server.stdout is not None
        assert server.stdout.readline() == b"held\n"
        calling = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CALLERS)]
        for one in calling:
            one.sendall(b"GET / HTTP/1.1\r\n\r\n")
        accepted = sorted(int(whole(one)[-4:]) for one in calling)
        server.terminate()
        assert server.wait(60) == 0
    assert accepted[-1] == CALLERS + 2  # and the one that holds, and the one that looked whether anybody listens
    assert accepted[CALLERS // 4] == CALLERS + 2  # with one in each turn it would be as many as were answered, and a few


def whole(calling: socket.socket) -> bytes:
    """What is said until the connection is closed."""
    with calling.makefile("rb") as said:
        return said.read()
