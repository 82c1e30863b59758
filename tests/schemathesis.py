"""Checks the session API against the OpenAPI document that it serves, with schemathesis.

    python3 tests/schemathesis.py --binary PATH --schemathesis PATH

An upstream keeps one request open through the proxy, so that its request token stays valid during the
checks.
"""

import argparse
import http.server
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import urllib.request

from processes import free_ports, wait_for

KEY = "dGhlIGtleSB0aGF0IGFsbCB0aGVzZSB0ZXN0cyB1c2U"
SERVICE_TOKEN = "the-service-token-of-the-tests"


class Holding(http.server.BaseHTTPRequestHandler):
    """Reports the headers of the request, and responds when the checks are done."""

    headers_received = queue.Queue()
    done = threading.Event()

    def do_GET(self):
        self.headers_received.put(self.headers)
        self.done.wait()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def check(schemathesis, api, headers, excluded):
    command = [
        schemathesis, "run", f"{api}/openapi.json", "--url", api.rsplit("/", 1)[0],
        "--checks", "all", "--exclude-checks", excluded, "--max-examples", "25", "--seed", "1",
        "--phases", "examples,coverage,fuzzing", "--request-timeout", "20", "--no-color", "--generation-database", "none",
    ]
    for name, value in headers.items():
        command += ["--header", f"{name}: {value}"]
    return subprocess.run(command, timeout=600).returncode


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--binary", required=True)
    arguments.add_argument("--schemathesis", required=True)
    arguments = arguments.parse_args()
    public, api, admin = free_ports(3)
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Holding)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "cloakroom.toml"
        file.write_text(f"""
[[listen]]
address = "127.0.0.1:{public}"
[api]
address = "127.0.0.1:{api}"
service_token = "{SERVICE_TOKEN}"
[admin]
address = "127.0.0.1:{admin}"
[session]
keys = ["{KEY}"]
[store]
url = "memory:"
[log]
level = "trace"
[[route]]
upstream = "http://127.0.0.1:{upstream.server_port}"
response_timeout = "1h"
""")
        logs = pathlib.Path(os.environ.get("TEST_LOG_DIRECTORY", directory))
        with (logs / "schemathesis.log").open("wb") as log:
            proxy = subprocess.Popen([arguments.binary, "run", "--config", file], stderr=log)
        try:
            wait_for(public, proxy)
            visit = threading.Thread(target=urllib.request.urlopen, args=[f"http://127.0.0.1:{public}/"], daemon=True)
            visit.start()
            received = Holding.headers_received.get(timeout=30)
            headers = {
                "X-Session-Token": received["X-Session-Token"],
                "Authorization": f"Bearer {SERVICE_TOKEN}",
            }
            # Valid data may be rejected because of the state of the session (412, an increment of a text), and
            # invalid preferences are ignored: the first two checks do not know that. `ignored_auth` does not see
            # credentials from the command line.
            excluded = "positive_data_acceptance,negative_data_rejection,ignored_auth"
            failed = check(arguments.schemathesis, received["X-Session-Url"], headers, excluded)
        finally:
            Holding.done.set()
            proxy.terminate()
            ended = proxy.wait(60)
    print(f"schemathesis {'failed' if failed else 'found nothing'}; the proxy exited with code {ended}")
    return 1 if failed or ended else 0


if __name__ == "__main__":
    sys.exit(main())
