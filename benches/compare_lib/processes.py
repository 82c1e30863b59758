"""Processes of the benchmark: starting and pinning them, and reading their CPU time and memory from /proc."""

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time

from . import tools

TICK = os.sysconf("SC_CLK_TCK")
CPUS = sorted(os.sched_getaffinity(0))
# The proxy has a CPU of its own; wrk, the upstream and Redis share the other.
PROXY, OTHERS, BOTH = CPUS[:1], CPUS[1:2], CPUS[:2]


class Testbed:
    """Processes that end together, and their directory."""

    def __init__(self, proxy_cpus=PROXY, other_cpus=OTHERS):
        self.proxy_cpus, self.other_cpus = proxy_cpus, other_cpus
        self.directory = tempfile.mkdtemp(prefix="cloakroom-compare-")
        self.processes = []

    def __enter__(self):
        self.upstream = self.start([tools.UPSTREAM], self.other_cpus, stdout=subprocess.PIPE)
        self.upstream_port = int(self.upstream.stdout.readline())
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, command, cpus, env=None, **streams):
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams}
        process = subprocess.Popen([str(word) for word in command], cwd=self.directory, **streams,
                                   env={**tools.environment(), **(env or {})},
                                   preexec_fn=lambda: os.sched_setaffinity(0, cpus))
        self.processes.append(process)
        return process

    def proxy(self, command, **options):
        return self.start(command, self.proxy_cpus, **options)

    def path(self, name):
        return os.path.join(self.directory, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def redis(self):
        return Redis(self)

    def certificate(self):
        """Returns the paths of a self-signed certificate and its key."""
        certificate, key = self.path("certificate.pem"), self.path("key.pem")
        if not os.path.exists(certificate):
            tools.run([tools.program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt",
                       "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost", "-days", "2",
                       "-keyout", key, "-out", certificate])
        return certificate, key


class Redis:
    """A Redis server without persistence."""

    def __init__(self, bed):
        self.port = free_port()
        process = bed.start([tools.program("redis-server"), "--port", self.port, "--bind", "127.0.0.1",
                             "--save", "", "--appendonly", "no", "--dir", bed.directory], bed.other_cpus)
        self.pid = process.pid
        wait_for(self.port, process)

    def call(self, *words):
        """Returns the reply to a command, as text."""
        words = [str(word) for word in words]
        command = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(command.encode() + b"QUIT\r\n")
            return connection.makefile().read()

    def commands(self):
        """Returns the number of commands so far, including those of scripts."""
        return int(self.call("INFO", "stats").split("total_commands_processed:")[1].split()[0])


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port, process, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.01)
    raise tools.Failed(f"{process.args[0]} does not listen on port {port}")


def connect(port, tls=False):
    if not tls:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=ssl._create_unverified_context())


def get(connection, path, headers=None):
    connection.request("GET", path, headers=headers or {})
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise tools.Failed(f"{path}: status {response.status}: {body.decode(errors='replace')[:100]}")
    return response, body


def cookie(connection):
    """Creates a session and returns its cookie."""
    response, _ = get(connection, "/begin")
    return response.getheader("Set-Cookie").split(";")[0]


def tree(pid):
    """Returns the ids of a process and its descendants."""
    pids = [pid]
    for each in pids:
        try:
            for thread in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{thread}/children") as children:
                    pids += map(int, children.read().split())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return pids


def cpu(pid):
    """Returns the CPU seconds of all threads of a process and its descendants."""
    total = 0
    for each in tree(pid):
        try:
            with open(f"/proc/{each}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def busy():
    """Returns the CPU seconds that the whole machine was busy, including steal time."""
    with open("/proc/stat") as stat:
        fields = list(map(int, stat.readline().split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / TICK


def resident(pid):
    """Returns the resident memory of a process and its descendants, in MiB."""
    pages = 0
    for each in tree(pid):
        with open(f"/proc/{each}/statm") as statm:
            pages += int(statm.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
