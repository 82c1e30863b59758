"""Measures the cost of Cloakroom, compared with a bare upstream and nginx, and writes docs/explanation/benchmarks.md.

The proxy is pinned to CPU 0; wrk, the upstream and Redis to CPU 1. Targets are sampled in turn, in reverse
order in every other round, and ratios are computed within a round. CPU seconds are utime + stime of the
proxy's process tree, from /proc. CPU time of unrelated processes is reported.
"""

import argparse
import datetime
import http.client
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TICK = os.sysconf("SC_CLK_TCK")
RELEASE = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "release")
CONNECTIONS = (1, 32, 256)
KEY = "dGhlIGtleSBvZiB0aGUgYmVuY2htYXJrLCA0MyBsb24"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port):
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"nothing listens on port {port}")


def get(port, path, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers=dict(headers))
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def tree(pid):
    """Returns the ids of a process and its descendants."""
    pids = [pid]
    for each in pids:
        try:
            for thread in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{thread}/children") as children:
                    pids += map(int, children.read().split())
        except FileNotFoundError:
            pass
    return pids


def cpu(pid):
    """Returns the CPU seconds of a process tree."""
    total = 0
    for each in tree(pid):
        try:
            with open(f"/proc/{each}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def busy():
    """Returns the CPU seconds that the whole machine was busy, including steal time."""
    with open("/proc/stat") as stat:
        fields = list(map(int, stat.readline().split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / TICK


def resident(pid):
    pages = 0
    for each in tree(pid):
        with open(f"/proc/{each}/statm") as statm:
            pages += int(statm.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Target:
    """A process under test, its port, and a cookie if requests must reach the upstream with a session."""

    def __init__(self, name, process, port, path="/", cookie=None):
        self.name, self.process, self.port, self.path, self.cookie = name, process, port, path, cookie


class TestBed:
    """All processes of the benchmark, and a directory that is removed at the end."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="cloakroom-bench-")
        self.processes = []
        self.upstream = self.start(1, [f"{RELEASE}/examples/bench-upstream"], stdout=subprocess.PIPE)
        self.upstream_port = int(self.upstream.stdout.readline())
        self.redis_port = free_port()
        self.redis = self.start(1, ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1",
                                    "--save", "", "--appendonly", "no", "--dir", self.directory])
        wait_for(self.redis_port)

    def start(self, core, command, env=None, stdout=subprocess.DEVNULL):
        process = subprocess.Popen(["taskset", "-c", str(core), *command], stdin=subprocess.DEVNULL, stdout=stdout,
                                   stderr=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        self.processes.append(process)
        return process

    def write(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def nginx(self):
        port = free_port()
        path = self.write("nginx.conf", f"""
            daemon off; master_process off; worker_processes 1; pid {self.directory}/nginx.pid;
            error_log /dev/null crit;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; client_body_temp_path {self.directory}/body; proxy_temp_path {self.directory}/proxy;
                keepalive_requests 1000000000;
                upstream site {{
                    server 127.0.0.1:{self.upstream_port}; keepalive 512; keepalive_requests 1000000000;
                }}
                server {{
                    listen 127.0.0.1:{port} backlog=1024;
                    location / {{
                        proxy_pass http://site; proxy_http_version 1.1; proxy_set_header Connection "";
                        proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
                    }}
                }}
            }}""")
        nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
        process = self.start(0, [nginx, "-c", path, "-e", "/dev/null"])
        wait_for(port)
        return Target("nginx, plain proxy", process, port)

    def cloakroom(self, name, store, path="/"):
        """Starts Cloakroom with the routes / (session), /off (no session) and /data (values by header)."""
        port, api, admin = free_port(), free_port(), free_port()
        state = os.path.join(self.directory, f"state-{port}")
        os.mkdir(state)
        route = f'upstream = "http://127.0.0.1:{self.upstream_port}"\n'
        config = self.write(f"cloakroom-{port}.toml", f"""
[[listen]]
address = "127.0.0.1:{port}"
[api]
address = "127.0.0.1:{api}"
[admin]
address = "127.0.0.1:{admin}"
[session]
keys = ["{KEY}"]
[store]
url = "{store}"
timeout = "5s"
[log]
access = false
level = "warn"
[[route]]
path = "/"
{route}
[[route]]
path = "/off"
session = "off"
{route}
[[route]]
path = "/data"
header_exchange = true
{route}
[[route]]
path = "/begin"
header_exchange = true
{route}""")
        process = self.start(0, [f"{RELEASE}/cloakroom", "run", "--config", config], {"STATE_DIRECTORY": state})
        wait_for(port)
        response, _ = get(port, "/begin")
        cookie = (response.getheader("Set-Cookie") or "").split(";")[0]
        if not cookie:
            raise SystemExit(f"{name}: no session was created: status {response.status}")
        return Target(name, process, port, path, cookie)

    def counts(self):
        _, body = get(self.upstream_port, "/counts")
        return tuple(map(int, body.split()))

    def end(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


UNITS = {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}


def wrk(target, connections, seconds):
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency",
               *(["-H", f"Cookie: {target.cookie}"] if target.cookie else []),
               f"http://127.0.0.1:{target.port}{target.path}"]
    before = os.times()
    run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    after = os.times()
    own = after.children_user + after.children_system - before.children_user - before.children_system
    text = run.stdout

    def latency(percent):
        number, unit = re.search(rf"^ +{percent}% +([0-9.]+)(us|ms|s|m)", text, re.M).groups()
        return float(number) * UNITS[unit]

    requests, took = re.search(r"(\d+) requests in ([0-9.]+)(s|m)", text).group(1, 2)
    errors = sum(map(int, re.findall(r"(?:Socket errors:.*|Non-2xx or 3xx responses: )(\d+)", text)))
    if "Socket errors" in text or "Non-2xx" in text:
        errors = max(errors, 1)
    return int(requests), float(took), latency(50), latency(99), errors, own


def sample(bed, target, connections, seconds):
    """Takes one sample after a warm-up."""
    wrk(target, connections, 1)
    requests_before, sessions_before = bed.counts()
    everything = [target.process.pid, bed.upstream.pid, bed.redis.pid]
    everything = list(dict.fromkeys(everything))
    ours, machine = {pid: cpu(pid) for pid in everything}, busy()
    requests, took, p50, p99, errors, wrks = wrk(target, connections, seconds)
    machine = busy() - machine
    used = {pid: cpu(pid) - ours[pid] for pid in everything}
    requests_after, sessions_after = bed.counts()
    arrived, with_session = requests_after - requests_before, sessions_after - sessions_before
    expects_session = target.cookie is not None and not target.path.startswith("/off")
    if with_session != (arrived if expects_session else 0) or arrived < requests:
        raise SystemExit(f"{target.name}: {with_session} of {arrived} requests arrived with a session")
    return {
        "rate": requests / took, "cpu": used[target.process.pid] / requests * 1e5, "p50": p50, "p99": p99,
        "redis": used[bed.redis.pid] / requests * 1e5, "errors": errors, "rss": resident(target.process.pid),
        "foreign": max(0.0, machine - sum(used.values()) - wrks) / took,
    }


def spread(values, digits):
    if max(values) == 0:
        return "–"
    median = f"{statistics.median(values):.{digits}f}"
    return f"{median} ({min(values):.{digits}f}–{max(values):.{digits}f})" if len(values) > 1 else median


def table(targets, samples, connections):
    lines = [f"\n## {connections} connection{'s' if connections > 1 else ''}\n",
             "| | requests/s | vs. nginx | CPU s / 100,000 | vs. nginx | p50 ms | p99 ms | MiB |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    nginx = samples["nginx, plain proxy", connections]
    for target in targets:
        own = samples[target.name, connections]

        def ratio(key):
            return spread([a[key] / b[key] for a, b in zip(own, nginx)], 2)

        lines.append("| " + " | ".join([
            target.name, spread([s["rate"] for s in own], 0), ratio("rate"), spread([s["cpu"] for s in own], 2),
            ratio("cpu"), spread([s["p50"] for s in own], 3), spread([s["p99"] for s in own], 3),
            f"{own[-1]['rss']:.0f}"]) + " |")
    return "\n".join(lines)


def version(command):
    run = subprocess.run(command, capture_output=True, text=True)
    return re.search(r"\d+\.\d+(\.\d+)?", run.stdout + run.stderr).group(0)


def head(samples, rounds, seconds):
    with open("/proc/cpuinfo") as cpuinfo:
        model = re.search(r"model name\s*: (.*)", cpuinfo.read())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    everything = [one for each in samples.values() for one in each]
    foreign = [one["foreign"] for one in everything]
    path = {"PATH": os.environ["PATH"] + ":/usr/sbin"}
    nginx = re.search(r"[\d.]+", subprocess.run(["nginx", "-v"], capture_output=True, text=True, env=path).stderr).group(0)
    return f"""# Benchmarks

Written by `benches/run`. The figures are those of one run; they are no targets.

Commit {commit}, {datetime.date.today()}; {os.cpu_count()} virtual cores ({model.group(1) if model else platform.machine()}),
shared with other workloads; Linux {'.'.join(platform.release().split('.')[:2])}; nginx {nginx}, wrk {version(["wrk", "-v"])},
Redis {version(["redis-server", "--version"])}.

HTTP/1.1 on loopback without TLS, keep-alive connections, small requests, pages of 1 KiB. Only the proxy runs on CPU 0;
wrk, the upstream (`benches/upstream.rs`) and Redis run on CPU 1. {rounds} rounds with samples of {seconds} s after one second
of warm-up; targets in turn, in reverse order in every other round. The tables show the median, with minimum and maximum
in brackets. CPU is user and system time of the proxy's processes (for the bare upstream, its own); ratios are computed
within a round. The CPU ratio is the most robust figure: requests per second also depend on the load of CPU 1, and with
one connection mostly on wake-ups of the other CPU. With Redis as the store, the CPU time of Redis comes on top:
{spread([s["redis"] for s in samples["Cloakroom, session in Redis", 32]], 2)} s / 100,000 at 32 connections.

With a session, the upstream receives its id (`X-Session-Id`) and can call the session API; *with its values by header*
adds the session's values (189 bytes of JSON) to every request. The upstream verified that every request had its session.
The access log is off everywhere. Errors: {sum(one["errors"] for one in everything)}. CPU time of unrelated processes,
of 2 CPUs: {statistics.median(foreign):.2f} in the median, {max(foreign):.2f} at most."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, seconds = (1, 1) if quick else (3, 5)
    bed = TestBed()
    try:
        sqlite = bed.cloakroom("Cloakroom, session in SQLite", "sqlite:cloakroom.db")
        memory = bed.cloakroom("Cloakroom, session in memory", "memory:")
        redis = bed.cloakroom("Cloakroom, session in Redis", f"redis://127.0.0.1:{bed.redis_port}/")
        targets = [
            Target("bare upstream", bed.upstream, bed.upstream_port),
            bed.nginx(),
            Target("Cloakroom, session = \"off\"", memory.process, memory.port, "/off", memory.cookie),
            memory, sqlite, redis,
            Target("the same, with its values by header", redis.process, redis.port, "/data", redis.cookie),
        ]
        samples = {}
        for connections in CONNECTIONS:
            for number in range(rounds):
                for target in targets if number % 2 == 0 else targets[::-1]:
                    one = sample(bed, target, connections, seconds)
                    samples.setdefault((target.name, connections), []).append(one)
                    print(f"c={connections} {target.name}: {one['rate']:.0f}/s, {one['cpu']:.2f} CPU s/100k, "
                          f"foreign {one['foreign']:.2f}, errors {one['errors']}", file=sys.stderr)
    finally:
        bed.end()
    tables = "\n".join(table(targets, samples, connections) for connections in CONNECTIONS)
    text = head(samples, rounds, seconds) + "\n" + tables + "\n"
    print(text)
    if not quick:
        os.makedirs("docs", exist_ok=True)
        with open("docs/explanation/benchmarks.md", "w") as file:
            file.write(text)
    return 1 if any(one["errors"] for each in samples.values() for one in each) else 0


if __name__ == "__main__":
    sys.exit(main())
