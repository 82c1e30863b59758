"""The page: what was measured, in one table."""

import datetime
import os
import platform
import re
import statistics
import subprocess

from . import tools

COLUMNS = [
    ("CPU vs. nginx", "cpu_ratio", 2), ("CPU µs", "cpu", 1), ("requests/s vs. nginx", "rate_ratio", 2),
    ("requests/s", "rate", 0), ("p50 ms", "p50", 2), ("p99 ms", "p99", 2), ("MiB", "rss", 0),
    ("Redis CPU µs", "redis_cpu", 1), ("Redis commands", "redis_commands", 1),
]


def median(target, connections, key):
    """Returns the median of a figure over the rounds; `None` if it was not measured."""
    values = [sample[key] for sample in target.samples.get(connections, ())]
    return None if not values or None in values else statistics.median(values)


def table(results):
    """Returns the Markdown table of all scenes."""
    lines = ["| | " + " | ".join(title for title, _, _ in COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for scene, targets in results:
        counts = sorted(scene.connections)
        title = scene.title if "connections" in scene.title else (
            f"{scene.title}: {' / '.join(map(str, counts))} connections")
        lines.append(f"| **{title}** |" + " |" * len(COLUMNS))
        for target in targets:
            if target.failure:
                lines.append(f"| {target.name} | not measured: {target.failure} |" + " |" * (len(COLUMNS) - 1))
                continue
            cells = [cell(target, counts, key, digits) for _, key, digits in COLUMNS]
            lines.append(f"| {target.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(target, counts, key, digits):
    values = [median(target, connections, key) for connections in counts]
    return "" if None in values else " / ".join(f"{value:.{digits}f}" for value in values)


def every_sample(results):
    return [one for _, targets in results for target in targets for each in target.samples.values() for one in each]


def failed(results):
    return any(target.failure for _, targets in results for target in targets)


def errors(results):
    return sum(one["errors"] for one in every_sample(results))


def spread(results):
    """Returns the median, over all targets, of how far the CPU ratios of a target lie apart, in percent."""
    spreads = []
    for _, targets in results:
        for target in targets[1:]:
            for samples in target.samples.values():
                ratios = [sample["cpu_ratio"] for sample in samples]
                spreads.append((max(ratios) - min(ratios)) / statistics.median(ratios) * 100)
    return statistics.median(spreads) if spreads else 0


def version(*command):
    run = subprocess.run([tools.program(command[0]), *command[1:]], capture_output=True, text=True,
                         env=tools.environment())
    found = re.search(r"\d+\.\d+(\.\d+)?", run.stdout + run.stderr)
    return found.group(0) if found else "?"


def versions():
    programs = [("nginx", "-v"), ("haproxy", "-v"), ("redis-server", "--version"), ("wrk", "-v"),
                ("h2load", "--version"), ("node", "--version")]
    names = []
    for command in programs:
        try:
            names.append(f"{command[0]} {version(*command)}")
        except tools.Unavailable:
            pass
    npm = ", ".join(package.replace("@", " ") for package in tools.NPM)
    pypi = ", ".join(package.replace("==", " ") for package in tools.PYPI)
    return f"{', '.join(names)}; from npm {npm}; Python {platform.python_version()}, from PyPI {pypi}"


def page(results, rounds, seconds, quick):
    with open("/proc/cpuinfo") as cpuinfo:
        model = re.search(r"model name\s*: (.*)", cpuinfo.read())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            cwd=tools.ROOT).stdout.strip()
    foreign = [one["foreign"] for one in every_sample(results)]
    note = ("\n**A quick run: one round of one second each, on a machine that had other work. Take the figures as an "
            "example of the table.**\n") if quick else ""
    apart = f"The CPU ratios of a target lie {spread(results):.0f} % apart in the median. " if rounds > 1 else ""
    return f"""# Performance

Written by `benches/compare`. The figures are those of one run.
{note}
What a session costs, compared with nginx as a plain proxy. A CPU ratio of 1.5 means that a request costs one and a half
times the CPU time that nginx needs to forward it.

![CPU time per request, compared with nginx](performance.svg)

## Figures

A cell with three figures is for 1, 32 and 256 connections.

{table(results)}

- **CPU** is the user and system time of all threads and processes of the proxy, per request. Redis comes on top; it has
  columns of its own. Its commands include those inside scripts.
- **vs. nginx** is the ratio to nginx in the same scene and round, with the same certificate, headers and connections.
  The CPU ratio is the most robust figure. Requests per second also depend on the other CPU, which wrk, the upstream and
  Redis share; with one connection, mostly on how long it takes to wake that CPU.
- The two workers share both CPUs with wrk, the upstream and Redis: what counts there is requests per second.
- The memory store has room for about 555,000 of these sessions, so a full run measures it with 500,000.
- **MiB** is the resident memory after the samples.
- With a session, the upstream gets its id and can call the session API. *Header exchange* adds the values (189 bytes of
  JSON) to each request; *API call* means that the upstream makes one call for each request. The upstream verified that
  each request had its session.
- *Cached* is `[store] cache` with a session that is in the cache.
- Express and Django do not proxy: they make the page themselves. Their sessions cost the difference to their page
  without a session; those of Cloakroom cost all of its CPU time.

## Method

Commit {commit}, {datetime.date.today()}; {os.cpu_count()} virtual cores ({model.group(1) if model else platform.machine()}); Linux {'.'.join(platform.release().split('.')[:2])}.
{versions()}.

Loopback, kept-alive connections, pages of 1 KiB. HTTP/1.1 without TLS, the access log off, and one session for all
requests, unless the table says otherwise. The proxy runs alone on one CPU; wrk, the upstream (`benches/upstream`) and Redis
run on another. An access log goes into a pipe that another process reads.

Each target is warmed up for a second. Then {rounds} round{'s' if rounds > 1 else ''} of samples of {seconds} s: the targets in turn, in reverse order in every other
round, nginx again before every five. The table has the medians. {apart}Errors: {errors(results)}.
Other processes used {statistics.median(foreign):.2f} CPUs in the median, {max(foreign):.2f} at most.

`benches/compare --instructions` counts the instructions per request, which other processes do not change, and compares
them with `benches/instructions.toml`.
"""
