"""Starts servers on free ports of the loopback address."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time

PATIENCE = 60


# Below the ports that Linux gives to outgoing connections, one of which might take the port of a server that restarts.
PORTS = iter(random.sample(range(10_000, 32_000), 20_000))


def free_ports(count):
    """Returns ports on which nothing listens, each once."""
    return list(itertools.islice(filter(is_free, PORTS), count))


def is_free(port):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_for(port, process):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{process.args[0]} did not start")


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
