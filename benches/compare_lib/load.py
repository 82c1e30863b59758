"""Load generators: wrk for HTTP/1.1, h2load for HTTP/2."""

import os
import re
import statistics
import subprocess
from dataclasses import dataclass

from . import tools

MILLISECONDS = {"us": 1e-3, "ms": 1, "s": 1e3, "m": 6e4}

# Sends the cookies of a file in turn; with a single one, the same work is done.
COOKIES = """
function init(arguments)
    requests, next = {}, 0
    for cookie in io.lines(arguments[1]) do
        wrk.headers["Cookie"] = cookie
        requests[#requests + 1] = wrk.format()
    end
end
function request()
    next = next % #requests + 1
    return requests[next]
end
"""


@dataclass
class Load:
    """What a load generator reports. Latencies are in milliseconds, `cpu` is its own CPU time in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    errors: int
    cpu: float


def run(command, cpus, seconds):
    before = os.times()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=seconds + 60,
                          env=tools.environment(), preexec_fn=lambda: os.sched_setaffinity(0, cpus))
    after = os.times()
    if done.returncode:
        raise tools.Failed(f"{command[0]} failed: {done.stderr}")
    return done.stdout, after.children_user + after.children_system - before.children_user - before.children_system


def wrk(bed, url, headers, connections, seconds, cookies=None):
    """Requests a URL by HTTP/1.1; with the cookies of a file in turn, if one is named."""
    command = [tools.program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    for header in headers:
        command += ["-H", header]
    if cookies:
        command += ["-s", bed.write("cookies.lua", COOKIES)]
    text, cpu = run([*command, url, *(["--", cookies] if cookies else [])], bed.other_cpus, seconds)

    def latency(percent):
        number, unit = re.search(rf"^ +{percent}% +([0-9.]+)(us|ms|s|m)", text, re.M).groups()
        return float(number) * MILLISECONDS[unit]

    requests, took, unit = re.search(r"(\d+) requests in ([0-9.]+)(ms|s|m)", text).groups()
    failures = re.findall(r"Non-2xx or 3xx responses: (\d+)", text)
    for line in re.findall(r"Socket errors: (.*)", text):
        tools.log(f"wrk: socket errors: {line}")
        failures += re.findall(r"\d+", line)
    return Load(int(requests), float(took) * MILLISECONDS[unit] / 1e3, latency(50), latency(99),
                sum(map(int, failures)), cpu)


def h2load(bed, url, headers, connections, seconds, streams=16):
    """Requests a URL by HTTP/2, with 16 streams at a time on each connection."""
    log = bed.path("h2load.log")
    if os.path.exists(log):
        os.remove(log)
    command = [tools.program("h2load"), "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}", f"--log-file={log}"]
    for header in headers:
        command += ["-H", header]
    text, cpu = run([*command, url], bed.other_cpus, seconds)
    done, failed, errored, timeouts = map(int, re.search(
        r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text).groups())
    with open(log) as lines:
        durations = [int(line.split()[2]) / 1e3 for line in lines]
    percentiles = statistics.quantiles(durations, n=100)
    return Load(done, seconds, percentiles[49], percentiles[98], failed + errored + timeouts, cpu)
