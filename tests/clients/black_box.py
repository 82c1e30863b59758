"""Runs the clients' sites behind the program.

    python3 tests/clients/black_box.py --binary PATH [--python PATH] [--modules DIRECTORY] [--only SITE]

Each site runs twice, with calls of the API and with header exchange. Lost updates are counted for the framework's
own sessions, too, for comparison.
"""

import argparse
import concurrent.futures
import contextlib
import pathlib
import sys
import tempfile
import time
import traceback

import kit

PARALLEL = 50
SLOW = 12
MODES = {"api": {}, "headers": {"header_exchange": "partial"}}
VALUES = {
    "text": "Zo\u00eb \U0001f600 \"'\\ \n <b>", "empty": "", "integer": 9007199254740991, "negative": -1,
    "fraction": 1.5, "true": True, "false": False, "null": None, "list": [1, "2", [None, [3]], []],
    "object": {"a": {"b": [1]}, "c d": "e", "5": 6}, "a key with spaces/and=signs%&": 1,
}  # fmt: skip
# PHP has one empty array.
EMPTY = {"empty object": {}, "empty members": [{}, {"a": {}}]}


class Scene:
    """A site that runs, and the program in front of it, which each scenario starts again with an empty store."""

    def __init__(self, site, mode, options, directory):
        self.site, self.mode, self.options, self.directory = site, mode, options, directory
        self.log = pathlib.Path(directory) / f"{site.name}-{mode}.log"
        [self.api] = kit.free_ports(1)
        # How many of the parallel updates were kept, by what they changed.
        self.kept = {}

    def run_site(self):
        """Starts the site, which finds the session API of every program at one port."""
        settings = {"URL": f"http://127.0.0.1:{self.api}/_session"}
        if self.mode == "headers":
            settings["SECRETS"] = kit.secret_file(self.directory, kit.CLIENT_SECRET)
        return self.site.run(self.options, self.log, settings)

    @contextlib.contextmanager
    def run_program(self, **route):
        route = {**MODES[self.mode], **route}
        with kit.Program.run(self.options.binary, self.directory, self.port, api=self.api, **route) as program:
            self.program = program
            yield

    def visitor(self):
        return self.program.visitor()


def in_parallel(calls):
    """Runs functions at once, and returns what they return."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [one.result() for one in [pool.submit(call) for call in calls]]


def requests_at_once(visitor, op_of, **parameters):
    """Sends requests of one visitor that each read, wait 20 ms and change the session."""

    def send(n):
        tab = visitor.copy()
        tab.change(op_of(n), sleep=20, **parameters)
        # A browser takes the cookies of each response, which may be the session itself.
        visitor.jar.update(tab.jar)

    in_parallel([lambda n=n: send(n) for n in range(PARALLEL)])


def untouched_pages_make_no_call(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1])
    before = scene.program.api_calls()
    for _ in range(3):
        visitor.send("GET", "/untouched")
        scene.visitor().send("GET", "/untouched")
    assert scene.program.api_calls() == before


def header_exchange_makes_no_call(scene):
    if scene.mode == "api":
        return
    visitor = scene.visitor()
    before = scene.program.api_calls()
    visitor.change(["set", "a", 1])
    visitor.change(["set", "a", 2], ["append", "list", 1])
    assert visitor.values() == {"a": 2, "list": [1]}
    assert scene.program.api_calls() == before


def reading_creates_nothing(scene):
    visitor = scene.visitor()
    assert visitor.values() == {}
    visitor.change(["set", "flash", {}])
    assert not visitor.jar, visitor.jar


def values_round_trip(scene):
    visitor = scene.visitor()
    values = {**VALUES, **({} if "empty objects" in scene.site.lacks else EMPTY)}
    visitor.change(*(["set", key, value] for key, value in values.items()))
    found = visitor.values()
    assert found == values, found
    assert [type(found[key]) for key in values] == [type(value) for value in values.values()]
    visitor.change(["remove", "text"], ["remove", "never there"])
    assert visitor.send("GET", "/get", key="text").json == {"has": False}
    assert visitor.send("GET", "/get", key="null").json == {"has": True, "value": None}


def large_values_are_read_and_written(scene):
    visitor = scene.visitor()
    visitor.change(["set", "long", "x" * 100_000], ["set", "n", 1])
    visitor.change(["set", "n", 2])
    assert visitor.send("GET", "/get", key="long").json["value"] == "x" * 100_000
    assert visitor.values() == {"long": "x" * 100_000, "n": 2}


def own_keys(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1])
    requests_at_once(visitor, lambda n: ["set", f"key {n}", n])
    return len([key for key in visitor.values() if key.startswith("key ")])


def members(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1])
    requests_at_once(visitor, lambda n: ["member", "object", f"m{n}", n])
    return len(visitor.values().get("object", {}))


def elements(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1])
    requests_at_once(visitor, lambda n: ["append", "list", n])
    return len(set(visitor.values().get("list", [])))


def counter(scene):
    visitor = scene.visitor()
    visitor.change(["set", "n", 0])
    requests_at_once(visitor, lambda n: ["add", "n", 1])
    return visitor.values()["n"]


# What 50 parallel requests change, and how many of the changes are there afterwards.
UPDATES = {"keys": own_keys, "members": members, "elements": elements}


def no_update_is_lost(scene):
    scene.kept = {name: update(scene) for name, update in UPDATES.items()}
    assert all(kept == PARALLEL for kept in scene.kept.values()), f"of {PARALLEL} updates: {scene.kept}"


def log_in_rotates(scene):
    visitor = scene.visitor()
    visitor.change(["set", "basket", [1]])
    planted, [before] = visitor.copy(), visitor.jar.values()
    visitor.log_in("ada")
    [after] = visitor.jar.values()
    assert before != after
    assert scene.program.principals() == ["ada"], scene.program.principals()
    assert visitor.values()["basket"] == [1]
    assert planted.values() == {}, "the token from before the log-in opens the session"
    if "who" not in scene.site.lacks:
        assert visitor.who() == "ada"
        assert planted.who() is None


def log_in_without_a_session(scene):
    visitor = scene.visitor()
    visitor.log_in("ada")
    assert scene.program.principals() == ["ada"]
    visitor.change(["set", "a", 1])
    assert visitor.values()["a"] == 1


def log_out_removes_the_principal(scene):
    visitor = scene.visitor()
    visitor.log_in("ada")
    visitor.change(["set", "a", 1])
    visitor.send("POST", "/logout", [])
    assert [name for name in scene.program.principals() if name] == []
    if "who" not in scene.site.lacks:
        assert visitor.who() is None
    is_kept = visitor.values() == {"a": 1}
    assert is_kept == ("log-out keeps" not in scene.site.lacks), visitor.values()


def regenerating_keeps_the_values(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", [1]])
    before, token = visitor.id(), dict(visitor.jar)
    visitor.send("POST", "/regenerate", [])
    assert visitor.values() == {"a": [1]}
    assert visitor.id() != before
    assert visitor.jar != token
    assert len(scene.program.principals()) == 1


def flush_ends_the_session(scene):
    visitor = scene.visitor()
    visitor.log_in("ada")
    visitor.change(["set", "a", 1], ["set", "b", 1])
    old = visitor.copy()
    visitor.send("POST", "/flush", [["set", "a", 2]])
    assert visitor.values() == {"a": 2}, visitor.values()
    assert old.values() == {}
    assert scene.program.principals() == [None]
    visitor.send("POST", "/flush", [])
    assert visitor.values() == {}
    assert scene.program.principals() == []


def id_stays(scene):
    visitor = scene.visitor()
    first = visitor.id()
    assert first and visitor.id() == first
    visitor.change(["set", "a", 1])
    assert visitor.id() == first


def changes_after_the_head_are_kept(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1])
    visitor.change(["set", "a", 2], stream=1)
    assert visitor.values() == {"a": 2}


def saves_are_there_at_once(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1], save=1)
    visitor.change(["set", "a", 2], save=1)
    assert visitor.values() == {"a": 2}


def revoked_session_leaves_a_page(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1])
    [session] = scene.program.service("GET", "").json["sessions"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(visitor.copy().change, ["set", "b", 1], sleep=700)
        time.sleep(0.3)
        assert scene.program.service("DELETE", f"/{session['id']}").status == 204
        slow.result()
    assert visitor.values() == {}


def log_in_survives_slow_requests(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1])
    with concurrent.futures.ThreadPoolExecutor(SLOW) as pool:
        slow = [
            pool.submit(visitor.copy().change, ["set", f"slow {n}", n], sleep=400 + 20 * n) for n in range(SLOW)
        ]
        time.sleep(0.2)
        visitor.log_in("ada")
        tab = visitor.copy()
        for answer in slow:
            response = answer.result()
            # The browser takes what comes later, too.
            for line in response.headers.get_all("Set-Cookie") or []:
                tab.jar["id"] = line.split(";")[0].split("=", 1)[1]
    assert scene.program.principals() == ["ada"]
    tab.change(["set", "b", 1])
    assert tab.values()["b"] == 1
    if "who" not in scene.site.lacks:
        assert tab.who() == "ada"


def too_large_values_are_an_error(scene):
    visitor = scene.visitor()
    visitor.change(["set", "a", 1])
    response = visitor.change(["set", "too long", "x" * 1_100_000], expects=None)
    assert response.status >= 500, response.status
    assert visitor.values() == {"a": 1}
    assert "too long" in scene.log.read_text(errors="replace"), "the log does not name the key"


def forged_headers_open_nothing(scene):
    victim = scene.visitor()
    victim.log_in("ada")
    [session] = scene.program.service("GET", "").json["sessions"]
    forged = {
        "X-Session-Url": scene.program.url, "X-Session-Token": "x", "X-Session-Id": session["id"],
        "X-Session-Principal": "ada", "X-Session-Version": "1", "X-Session-Data": '{"a": "forged"}',
    }  # fmt: skip
    for path in ["/read", "/who"]:
        if path == "/who" and "who" in scene.site.lacks:
            continue
        response = kit.fetch(scene.port, "GET", path, headers=forged)
        assert response.status == 403, f"{path}: {response.status} {response.text[:200]}"
    elsewhere = kit.fetch(scene.port, "GET", "/read")
    assert elsewhere.status in [403, 500], elsewhere.status
    assert "did not come through Cloakroom" in scene.log.read_text(errors="replace")


NEEDS = {
    regenerating_keeps_the_values: ["regenerate", "id"],
    id_stays: ["id"],
    changes_after_the_head_are_kept: ["stream"],
    saves_are_there_at_once: ["save"],
}
SCENARIOS = [
    untouched_pages_make_no_call, header_exchange_makes_no_call, reading_creates_nothing, values_round_trip,
    large_values_are_read_and_written, no_update_is_lost, log_in_rotates, log_in_without_a_session,
    log_out_removes_the_principal, regenerating_keeps_the_values, flush_ends_the_session, id_stays,
    changes_after_the_head_are_kept, saves_are_there_at_once, revoked_session_leaves_a_page,
    log_in_survives_slow_requests, too_large_values_are_an_error, forged_headers_open_nothing,
]  # fmt: skip


def run(check, scene, **route):
    """Runs a scenario with a store of its own; returns whether it failed."""
    try:
        with scene.run_program(**route):
            check(scene)
    except Exception:
        log = scene.log.read_text(errors="replace").splitlines()[-12:]
        lines = [traceback.format_exc(limit=-3), *(f"    {line}" for line in log)]
        print(f"{scene.site.name}, {scene.mode}: {check.__name__} failed", *lines, sep="\n")
        return True
    return False


def run_site(site, options, directory):
    """Runs all scenarios that apply to a site; returns how many, and how many failed."""
    applicable = [check for check in SCENARIOS if not set(NEEDS.get(check, [])) & site.lacks.keys()]
    checks = [*((check, {}) for check in applicable), (counter_is_exact_one_at_a_time, {"one_at_a_time": "head"})]
    checks = [(check, route) for check, route in checks if options.scenario in [None, check.__name__]]
    results = []
    for mode in MODES:
        scene = Scene(site, mode, options, directory)
        with scene.run_site() as scene.port:
            results += [run(check, scene, **route) for check, route in checks]
        report_updates(site, f"Cloakroom, {kit.MODE_NAMES[mode]}", scene.kept)
    if options.stock:
        stock(site, options, directory)
    return len(results), sum(results)


def counter_is_exact_one_at_a_time(scene):
    scene.kept["counter"] = counter(scene)
    assert scene.kept["counter"] == PARALLEL, f"of {PARALLEL} updates: {scene.kept}"


def report_updates(site, sessions, kept):
    print(f"{site.name}, {sessions}: of {PARALLEL} updates: {kept}")
    kit.add_row("updates", site=site.name, sessions=sessions, **kept)


def stock(site, options, directory):
    """Counts the updates that the framework's own sessions keep."""
    if not site.stock:
        return
    log = pathlib.Path(directory) / f"{site.name}-stock.log"
    with site.run(options, log, {}, form="stock") as port:
        scene = argparse.Namespace(visitor=lambda: kit.Visitor(port), site=site)
        kept = {name: update(scene) for name, update in {**UPDATES, "counter": counter}.items()}
        report_updates(site, "the framework's own", kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kit.add_arguments(parser)
    parser.add_argument("--binary", required=True, help="the program")
    parser.add_argument("--scenario", help="run only this one")
    parser.add_argument("--stock", action="store_true", help="count lost updates of the frameworks' own sessions, too")
    parser.add_argument("--jobs", type=int, default=3, help="how many sites run at once")
    options = parser.parse_args()
    sites = kit.sites(options.only)
    assert sites, "no site"
    with tempfile.TemporaryDirectory() as directory:
        # Written before threads read them.
        for secret in [kit.CLIENT_SECRET, kit.SERVICE_TOKEN]:
            kit.secret_file(directory, secret)
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            results = list(pool.map(lambda site: run_site(site, options, directory), sites))
    count, failed = map(sum, zip(*results))
    print(f"{count} scenarios, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
