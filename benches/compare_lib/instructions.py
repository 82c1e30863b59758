"""Counts the instructions per request of the main paths by callgrind, and compares them with the baseline.

Only user space counts, and other processes change nothing, so a small margin is enough.
"""

import re
import signal
import tomllib

from . import processes, subjects, tools

BASELINE = tools.ROOT / "benches/instructions.toml"
MARGIN = 0.03
REQUESTS = 300

# The options of `subjects.cloakroom`, with a Redis if "redis" is set.
PATHS = {
    "off": {"path": "/off"},
    "memory": {},
    "sqlite": {"store": "sqlite:cloakroom.db"},
    "redis": {"redis": True},
    "redis-cached": {"redis": True, "cache": True},
    "exchange-read": {"redis": True, "path": "/data"},
    "exchange-increment": {"redis": True, "path": "/increment"},
    "api-read": {"redis": True, "path": "/api/read"},
    "api-increment": {"redis": True, "path": "/api/increment"},
    "access-log": {"path": "/off", "access_log": True},
}


def check(only, update):
    """Counts, and returns the exit code: 1 if a path needs more instructions than the baseline allows."""
    baseline = tomllib.loads(BASELINE.read_text())["instructions"] if BASELINE.exists() else {}
    counts, exceeded = {}, []
    print(f"{'path':20} {'instructions':>12} {'baseline':>9}")
    for name, options in PATHS.items():
        if only.lower() not in name:
            continue
        counts[name] = per_request(options)
        known = baseline.get(name)
        change = f"{(counts[name] / known - 1) * 100:+.1f} %" if known else "new"
        print(f"{name:20} {counts[name]:12,} {known or 0:9,} {change}", flush=True)
        if known is None or counts[name] > known * (1 + MARGIN):
            exceeded.append(name)
    if update:
        write({**baseline, **counts})
        return 0
    if exceeded:
        print(f"more than {MARGIN:.0%} above {BASELINE.name}: {', '.join(exceeded)}")
    return 1 if exceeded else 0


def per_request(options):
    """Returns the instructions per request: the difference of two runs, so that starting and stopping do not count."""
    once, twice = run(options, REQUESTS), run(options, 2 * REQUESTS)
    return round((twice - once) / REQUESTS)


def run(options, requests):
    """Returns the instructions of a run of the program with this number of requests on one connection."""
    with processes.Testbed() as bed:
        output = bed.path("callgrind.out")
        under = [tools.program("valgrind"), "--tool=callgrind", f"--callgrind-out-file={output}"]
        more = {"redis": bed.redis()} if options.get("redis") else {}
        target = subjects.cloakroom(bed, "", **{**options, **more}, under=under)
        connection = processes.connect(target.port)
        for _ in range(requests):
            processes.get(connection, target.path, {"Cookie": target.cookie})
        connection.close()
        target.process.send_signal(signal.SIGTERM)
        target.process.wait(120)
        with open(output) as file:
            return int(re.search(r"^(?:totals|summary): (\d+)", file.read(), re.M).group(1))


def write(counts):
    lines = [f"{name} = {counts[name]}" for name in PATHS if name in counts]
    BASELINE.write_text(f"""# Instructions per request in user space, by callgrind. `benches/compare --instructions` fails if a path
# needs {MARGIN:.0%} more; with `--update` it writes this file.
[instructions]
""" + "\n".join(lines) + "\n")
