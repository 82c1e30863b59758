"""Starts servers on free ports of the loopback address."""

import contextlib
import os
import signal
import socket
import subprocess
import time

PATIENCE = 60


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(port, process):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{process.args[0]} did not start")


@contextlib.contextmanager
def process(command, port, **options):
    """Starts a server in a process group of its own, which ends with the block."""
    server = subprocess.Popen(command, start_new_session=True, **options)
    try:
        wait_for(port, server)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=PATIENCE)
