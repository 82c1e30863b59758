#!/usr/bin/env python3
"""A practice for the person on call: a site with two instances of Cloakroom, under load, gets one of ten faults.

    on_call.py --binary PATH [--fault NAME] DIRECTORY

The fault is drawn by lot and happens after 20 seconds. DIRECTORY/scene.json says what may be looked at: the admin
listeners, the public ones and the logs. DIRECTORY/answer names the fault, and the instance or server that has it; do not
look before the diagnosis is made. The scene ends with SIGTERM, or after 15 minutes.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import http.server
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from processes import free_ports, process  # noqa: E402

CALM = 20
LONGEST = 15 * 60
KEY = "b2xkIGtleSBvZiB0aGUgcm9sbC1vdmVyLCAzMiBieXQ"
OTHER_KEY = "bmV3IGtleSBvZiB0aGUgcm9sbC1vdmVyLCAzMiBieXQ"
TOKEN = "admin-token-of-the-practice-0123456789"


class Site(http.server.ThreadingHTTPServer):
    """A site with a counter and a log-in. It takes `delay` seconds."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Page)
        self.delay = 0.0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        time.sleep(self.server.delay)
        patch = {"increment": {"visits": 1}}
        if self.path.startswith("/login"):
            patch["principal"] = self.path.partition("=")[2]
        text = b"a page\n"
        self.send_response(200)
        if self.path != "/health" and self.headers.get("X-Session-Token"):
            self.send_header("X-Session-Patch", json.dumps(patch))
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Visitors:
    """Visitors in turn at all instances, each with a cookie of its own."""

    def __init__(self, ports):
        self.ports, self.running, self.storm = ports, True, 0
        self.threads = [threading.Thread(target=self.visit, args=(n,), daemon=True) for n in range(12)]
        for thread in self.threads:
            thread.start()

    def visit(self, number):
        cookie, count = None, 0
        while self.running:
            count += 1
            storm = number < self.storm
            path = f"/login?name=user{random.randrange(10_000)}" if storm or count == 2 else "/"
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.ports[count % len(self.ports)], timeout=10)
                headers = {"Host": "shop.test"}
                if cookie and not storm:
                    headers["Cookie"] = cookie
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                response.read()
                line = response.getheader("Set-Cookie")
                if line:
                    cookie = line.partition(";")[0]
                connection.close()
            except OSError:
                time.sleep(0.1)
            if not storm:
                time.sleep(0.05)

    def stop(self):
        self.running = False


class Scene:
    def __init__(self, binary, directory):
        self.binary, self.directory = binary, directory
        self.redis_port, self.replica_port = free_ports(2)
        self.sites = [Site(), Site()]
        self.instances, self.logs, self.ports, self.faketime = [], [], [], ""

    def start_redis(self, port, *options):
        command = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1", *options]
        server = process(command, port, stdout=subprocess.DEVNULL, cwd=self.directory)
        return server

    def redis(self, *command, port=None):
        subprocess.run(["redis-cli", "-p", str(port or self.redis_port), *command], check=True, capture_output=True)

    def certificate(self, name, not_after):
        key, certificate = self.directory / f"{name}.key", self.directory / f"{name}.pem"
        subprocess.run(
            ["faketime", "-f", "-30d", "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
             "-nodes", "-keyout", key, "-out", certificate, "-subj", "/CN=shop.test", "-days", str(30 + not_after)],
            check=True, capture_output=True,
        )  # fmt: skip
        return certificate, key

    def configure(self, number, key=KEY, certificate=None):
        public, secure, api, admin = free_ports(4)
        certificate, private = certificate or self.certificate(f"certificate{number}", 60)
        upstreams = json.dumps([site.url for site in self.sites])
        text = f"""
[[listen]]
address = "127.0.0.1:{public}"
[[listen]]
address = "127.0.0.1:{secure}"
tls = {{ certificate = "{certificate}", key = "{private}" }}
[limits]
connections = 4096
[api]
address = "127.0.0.1:{api}"
service_token = "service-token-of-the-practice-0123456789"
[admin]
address = "127.0.0.1:{admin}"
token = "{TOKEN}"
[session]
keys = ["{key}"]
record_client = true
[cookie]
secure = false
name = "id"
[store]
url = "redis://127.0.0.1:{self.redis_port}/0"
[log]
access = false
[audit]
path = "{self.directory}/audit{number}.jsonl"
[[route]]
upstream = {upstreams}
header_exchange = true
"""
        file = self.directory / f"instance{number}.toml"
        file.write_text(text)
        self.ports.append({"public": public, "tls": secure, "admin": admin})
        return file, public

    def place(self, fault, struck):
        """Returns what has the fault: an instance, an upstream or a server."""
        if fault in ("descriptors", "certificate_expired", "wrong_key", "clock_off"):
            return f"instance {struck}"
        if fault == "upstream_slow":
            return self.sites[struck - 1].url
        if fault.startswith("store"):
            return f"Redis at 127.0.0.1:{self.redis_port}"
        return "both instances" if fault == "log_in_storm" else "both upstreams"

    def start(self, stack, number, file, port, wrapper=(), **options):
        log = self.directory / f"instance{number}.log"
        environment = {**os.environ, "STATE_DIRECTORY": str(self.directory / f"state{number}")}
        command = [*wrapper, self.binary, "run", file]
        output = open(log, "w")
        return stack.enter_context(process(command, port, stdout=output, stderr=output, env=environment, **options))


FAULTS = ["upstream_down", "upstream_slow", "store_unreachable", "store_full", "store_read_only", "descriptors",
          "certificate_expired", "wrong_key", "clock_off", "log_in_storm"]  # fmt: skip


def hold_descriptors(port, until):
    """Opens connections that say nothing until the program has no descriptors left."""
    held = []
    while time.monotonic() < until:
        try:
            one = socket.create_connection(("127.0.0.1", port), 0.5)
            one.sendall(b"GET / HTTP/1.1\r\nHost: shop.test\r\n")
            held.append(one)
        except OSError:
            time.sleep(0.2)
    return held


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("directory", type=pathlib.Path)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    directory = options.directory.resolve()
    fault = options.fault or random.choice(FAULTS)
    struck = random.choice((1, 2))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    scene = Scene(options.binary.resolve(), directory)
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(scene.start_redis(scene.redis_port))
        publics = []
        for number in (1, 2):
            certificate = scene.certificate("short", -1) if fault == "certificate_expired" and number == struck else None
            key = OTHER_KEY if fault == "wrong_key" and number == struck else KEY
            file, public = scene.configure(number, key, certificate)
            wrapper, environment = (), {}
            if number == struck and fault == "clock_off":
                wrapper = ("faketime", "-f", "+25m")
            if number == struck and fault == "descriptors":
                wrapper = ("sh", "-c", "ulimit -n 200; exec \"$@\"", "sh")
            scene.start(stack, number, file, public, wrapper)
            publics.append(public)
        (directory / "answer").write_text(f"{fault}: {scene.place(fault, struck)}\n")
        visitors = Visitors(publics)
        stack.callback(visitors.stop)
        (directory / "scene.json").write_text(json.dumps({
            "instances": [
                {"admin": f"http://127.0.0.1:{ports['admin']}/", "metrics": f"http://127.0.0.1:{ports['admin']}/metrics",
                 "public": f"http://127.0.0.1:{ports['public']}/ (Host: shop.test)", "tls": f"https://127.0.0.1:{ports['tls']}/",
                 "log": f"{directory}/instance{number}.log", "audit": f"{directory}/audit{number}.jsonl"}
                for number, ports in enumerate(scene.ports, 1)
            ],
            "admin_token": TOKEN, "started": time.strftime("%H:%M:%S"),
        }, indent=1))  # fmt: skip
        print(f"{directory}/scene.json", flush=True)
        time.sleep(CALM)
        until = time.monotonic() + LONGEST
        if fault == "upstream_down":
            for site in scene.sites:
                site.shutdown()
                site.server_close()
        elif fault == "upstream_slow":
            scene.sites[struck - 1].delay = 3.0
        elif fault == "store_unreachable":
            redis.send_signal(signal.SIGSTOP)
            stack.callback(redis.send_signal, signal.SIGCONT)
        elif fault == "store_full":
            scene.redis("CONFIG", "SET", "maxmemory", "1mb")
        elif fault == "store_read_only":
            stack.enter_context(scene.start_redis(scene.replica_port))
            scene.redis("REPLICAOF", "127.0.0.1", str(scene.replica_port))
        elif fault == "descriptors":
            hold_descriptors(publics[struck - 1], until)
        elif fault == "log_in_storm":
            visitors.storm = 10
        time.sleep(max(0, until - time.monotonic()))


if __name__ == "__main__":
    main()
