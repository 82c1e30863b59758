"""Measures scenes: starts the subjects, and takes samples of each in turn."""

import time

from . import processes, tools
from .subjects import Target

# Between two samples of the first subject, at most this many of the others.
STRETCH = 5


def measure(scene, rounds, seconds, only):
    """Returns the targets of a scene with their samples; none if `only` matches no subject."""
    base, *others = scene.subjects
    others = [(name, start) for name, start in others if only.lower() in name.lower()]
    if not others:
        return []
    tools.log(f"== {scene.title}")
    with scene.bed() as bed:
        targets = [begin(bed, name, start) for name, start in [base, *others]]
        base, *others = targets
        if base.failure:
            raise tools.Failed(base.failure)
        generate(scene, bed, base, scene.connections[0], 1)
        for target in others:
            attempt(target, lambda: generate(scene, bed, target, scene.connections[0], 1))
        for connections in scene.connections:
            for number in range(rounds):
                rest = others if number % 2 == 0 else others[::-1]
                for start in range(0, len(rest), STRETCH):
                    compared = sample(scene, bed, base, connections, seconds)
                    for target in rest[start:start + STRETCH]:
                        attempt(target, lambda: sample(scene, bed, target, connections, seconds, compared))
    return targets


def attempt(target, act):
    """Does something with a target, unless that has failed before."""
    if target.failure:
        return
    try:
        act()
    except tools.Failed as error:
        tools.log(f"{target.name}: {error}")
        target.failure = str(error)
        target.samples.clear()


def begin(bed, name, start):
    try:
        return start(bed)
    except tools.Failed as error:
        tools.log(f"{name}: {error}")
        return Target(name, None, 0, failure=str(error))


def generate(scene, bed, target, connections, seconds):
    cookie = "; ".join(filter(None, [scene.cookies, target.cookie]))
    headers = [*scene.headers, *([f"Cookie: {cookie}"] if cookie and not target.cookies else [])]
    options = {"cookies": target.cookies} if target.cookies else {}
    return scene.load(bed, target.url, headers, connections, seconds, **options)


def sample(scene, bed, target, connections, seconds, compared=None):
    """Takes a sample of a target, and adds it to those of the target."""
    pids = {"proxy": target.process.pid, "upstream": bed.upstream.pid}
    if target.redis:
        pids["redis"] = target.redis.pid
    arrived, with_session = counts(bed)
    commands = target.redis.commands() if target.redis else 0
    used, machine = {name: processes.cpu(pid) for name, pid in pids.items()}, processes.busy()
    load = generate(scene, bed, target, connections, seconds)
    machine = processes.busy() - machine
    used = {name: processes.cpu(pid) - used[name] for name, pid in pids.items()}
    commands = target.redis.commands() - commands if target.redis else 0
    arrived, with_session = (after - before for after, before in zip(counts(bed), (arrived, with_session)))
    if target.has_session is not None and (arrived < load.requests or with_session != arrived * target.has_session):
        raise tools.Failed(f"{with_session} of {arrived} requests arrived with a session, and {load.requests} were made")
    result = {
        "rate": load.requests / load.seconds, "cpu": used["proxy"] / load.requests * 1e6, "p50": load.p50,
        "p99": load.p99, "rss": processes.resident(target.process.pid), "errors": load.errors,
        "redis_cpu": used["redis"] / load.requests * 1e6 if target.redis else None,
        # INFO itself is one.
        "redis_commands": (commands - 1) / load.requests if target.redis else None,
        "foreign": max(0.0, machine - sum(used.values()) - load.cpu) / load.seconds,
    }
    compared = compared or result
    result["cpu_ratio"], result["rate_ratio"] = result["cpu"] / compared["cpu"], result["rate"] / compared["rate"]
    target.samples.setdefault(connections, []).append(result)
    tools.log(f"{connections:4} {target.name}: {result['cpu_ratio']:.2f}, {result['cpu']:.1f} µs, "
              f"{result['rate']:.0f}/s, others' CPU {result['foreign']:.2f}"
              + (f", {load.errors} errors" if load.errors else ""))
    return result


def counts(bed):
    """Returns the number of requests that the upstream served, and of those with a session."""
    connection = processes.connect(bed.upstream_port)
    before = None
    while True:
        _, body = processes.get(connection, "/counts")
        # Requests that wrk no longer waited for may still be on their way.
        if body == before:
            return tuple(map(int, body.split()))
        before = body
        time.sleep(0.03)
