"""Visits a site through the proxy with common HTTP clients, over TLS with HTTP/1.1 and HTTP/2.

    target/venv/bin/python tests/tls_clients.py --binary PATH

Each client has its own session, in which the site counts its visits, and trusts the certificate authority of the
test. It needs curl, h2load, Node, Chromium and openssl, and a Python with httpx and requests.
"""

import argparse
import base64
import hashlib
import http.server
import json
import os
import pathlib
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time

import httpx
import requests

from processes import free_ports, wait_for

PATIENCE = 60

NODE = """
const url = process.argv[1];
(async () => {
  let cookie = '', seen = [];
  for (let visit = 0; visit < 3; visit++) {
    const answer = await fetch(url, {headers: cookie ? {cookie} : {}});
    const set = answer.headers.getSetCookie();
    if (set.length) cookie = set[0].split(';')[0];
    seen.push((await answer.json()).visit);
  }
  console.log(JSON.stringify(seen));
})();
"""

NODE_HTTP2 = """
const {origin} = new URL(process.argv[1]);
const client = require('http2').connect(origin);
let cookie = '', seen = [];
const visit = () => {
  const request = client.request({':path': '/', ...(cookie ? {cookie} : {})});
  let body = '';
  request.on('response', (headers) => {
    if (headers['set-cookie']) cookie = headers['set-cookie'][0].split(';')[0];
  });
  request.on('data', (data) => { body += data; });
  request.on('end', () => {
    seen.push(JSON.parse(body).visit);
    if (seen.length < 3) return visit();
    console.log(JSON.stringify(seen));
    client.close();
  });
};
visit();
"""

# A page that shows the protocol over which it was loaded.
PAGE = """<!doctype html><meta charset="utf-8"><title>visit</title><p id="out"></p><script>
const [entry] = performance.getEntriesByType('navigation');
document.getElementById('out').textContent = `visit %d by ${entry.nextHopProtocol}`;
</script>"""


class Site(http.server.BaseHTTPRequestHandler):
    """A site that counts visits by header exchange."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path not in ["/", "/page"]:
            # Chromium requests a favicon.
            return self.send_error(404)
        visit = json.loads(self.headers["X-Session-Data"]).get("visits", 0) + 1
        page = PAGE % visit if self.path == "/page" else json.dumps({"visit": visit})
        kind = "text/html; charset=utf-8" if self.path == "/page" else "application/json"
        self.send_response(200)
        self.send_header("X-Session-Patch", '{"increment": {"visits": 1}}')
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page.encode())

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    # The default backlog of 5 is too small for the concurrent requests of h2load.
    request_queue_size = 1024


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def identity(directory):
    """Creates a certificate authority, and a certificate for localhost."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    ca = ["-keyout", directory / "ca.key", "-out", directory / "ca.pem", "-subj", "/CN=Cloakroom's tests"]
    run("openssl", "req", "-x509", *key, *ca)
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    signed = ["-CA", directory / "ca.pem", "-CAkey", directory / "ca.key"]
    own = ["-keyout", directory / "key.pem", "-out", directory / "cert.pem"]
    run("openssl", "req", "-x509", *key, *own, *names, *signed, "-addext", "basicConstraints=critical,CA:FALSE")


def curl(directory, url, option):
    jar, seen = directory / f"jar{option}", []
    for _ in range(3):
        options = ["--write-out", "\n%{http_version}", "--cookie", jar, "--cookie-jar", jar]
        body, version = run("curl", "-s", option, "--cacert", directory / "ca.pem", *options, url).rsplit("\n", 1)
        seen.append((json.loads(body)["visit"], version))
    return seen


def by_requests(directory, url):
    with requests.Session() as session:
        # Otherwise the environment may override the test's certificate authority.
        session.trust_env = False
        session.verify = str(directory / "ca.pem")
        return [session.get(url, timeout=PATIENCE).json()["visit"] for _ in range(3)]


def by_httpx(directory, url, http2):
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    with httpx.Client(http1=not http2, http2=http2, verify=context, trust_env=False) as client:
        answers = [client.get(url) for _ in range(3)]
        return [(answer.json()["visit"], answer.http_version) for answer in answers]


def by_node(directory, url, script):
    environment = {**os.environ, "NODE_EXTRA_CA_CERTS": str(directory / "ca.pem")}
    return json.loads(run("node", "-e", script, url, env=environment))


def by_h2load(url, *options):
    output = run("h2load", "-n", "500", "-c", "8", *options, url)
    protocol = re.search(r"Application protocol: (\S+)", output)[1]
    return re.search(r"status codes: (.*)", output)[1], protocol


def by_chromium(directory, url):
    public = ["openssl", "x509", "-in", directory / "cert.pem", "-pubkey", "-noout"]
    pem = run(*public).replace("\n", "").split("-----")[2]
    pin = base64.b64encode(hashlib.sha256(base64.b64decode(pem)).digest()).decode()
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
        f"--user-data-dir={directory / 'chromium'}", f"--ignore-certificate-errors-spki-list={pin}",
        "--virtual-time-budget=5000", "--dump-dom",
    ]  # fmt: skip
    seen = []
    for _ in range(3):
        dom = run("chromium", *options, f"{url}page")
        found = re.search(r"visit (\d+) by ([^<]*)", dom)
        seen.append((int(found[1]), found[2]) if found else dom)
    return seen


def check(what, found, expected):
    passed = found == expected
    print(f"{'ok    ' if passed else 'FAILED'}  {what}{'' if passed else f': {found}'}", flush=True)
    return passed


def visit(directory, url):
    twice = [1, 2, 3]
    with_version = lambda version: [(visit, version) for visit in twice]
    all_ok = "500 2xx, 0 3xx, 0 4xx, 0 5xx"
    return [
        check("curl, HTTP/1.1", curl(directory, url, "--http1.1"), with_version("1.1")),
        check("curl, HTTP/2", curl(directory, url, "--http2"), with_version("2")),
        check("requests", by_requests(directory, url), twice),
        check("httpx, HTTP/1.1", by_httpx(directory, url, False), with_version("HTTP/1.1")),
        check("httpx, HTTP/2", by_httpx(directory, url, True), with_version("HTTP/2")),
        check("Node's fetch", by_node(directory, url, NODE), twice),
        check("Node's http2", by_node(directory, url, NODE_HTTP2), twice),
        check("h2load, HTTP/1.1", by_h2load(url, "--h1"), (all_ok, "http/1.1")),
        check("h2load, HTTP/2", by_h2load(url, "-m", "10"), (all_ok, "h2")),
        check("Chromium", by_chromium(directory, url), with_version("h2")),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    binary = parser.parse_args().binary.resolve()
    site = Server(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    public, api, admin = free_ports(3)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        directory = pathlib.Path(name)
        identity(directory)
        (directory / "cloakroom.toml").write_text(
            f'[[listen]]\naddress = "127.0.0.1:{public}"\n'
            'tls = { certificate = "cert.pem", key = "key.pem" }\n'
            f'[api]\naddress = "127.0.0.1:{api}"\n[admin]\naddress = "127.0.0.1:{admin}"\n'
            '[store]\nurl = "memory:"\n'
            f'[[route]]\nupstream = "http://127.0.0.1:{site.server_port}"\nheader_exchange = true\n'
        )
        command = [binary, "run", "--config", directory / "cloakroom.toml"]
        with open(directory / "log", "wb") as log:
            proxy = subprocess.Popen(command, env={"STATE_DIRECTORY": name}, stderr=log)
        try:
            wait_for(public, proxy)
            passed = all(visit(directory, f"https://localhost:{public}/"))
        finally:
            proxy.terminate()
            code = proxy.wait(timeout=PATIENCE)
        passed = check("SIGTERM: exit code 0", code, 0) and passed
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        print(f"{time.monotonic() - began:.0f} s")
