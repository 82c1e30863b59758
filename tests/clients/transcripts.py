"""Sends single requests to the clients' sites, and is the session API that they call.

    python3 tests/clients/transcripts.py [--python PATH] [--modules DIRECTORY] [--only SITE]

`transcripts/*.json` say for each request which session it has, and what the site must write. Each runs twice: with
calls of the API, and with header exchange, in which the values come by header.
"""

import argparse
import contextlib
import http.server
import itertools
import json
import pathlib
import queue
import sys
import tempfile
import threading
import time

import kit

TRANSCRIPTS = kit.HERE / "transcripts"
TOKEN = "token-of-the-request"
ID = "AAECAwQFBgcICQoLDA0ODw"
NEXT_ID = "AAECAwQFBgcICQoLDA0OEA"
POLICY = {
    "idle_timeout": 1209600, "absolute_timeout": None, "expire_at_browser_close": False,
    "max_bytes": 1048576, "max_values": 1024,
}  # fmt: skip


class Api(http.server.ThreadingHTTPServer):
    """The session API of one request after another."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ApiHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/_session"
        self.play(None)

    def play(self, transcript):
        self.transcript, self.patches, self.faults = transcript, [], []

    def session(self):
        """Returns the session object (docs/reference/session-api.md)."""
        found = self.transcript.get("session")
        is_new = found is None
        return {
            "id": None if is_new and not self.patches else ID, "version": 7,
            "principal": self.transcript.get("principal"), "values": found or {},
            "created_at": "2026-11-20T11:00:00.000Z", "last_seen_at": "2026-11-20T11:03:12.000Z",
            "expires_at": "2026-12-04T11:03:12.000Z", "expires_in": 1209600,
            "expires_at_browser_close": False, "expiry": None, "new": is_new,
            **({"next_id": NEXT_ID} if is_new else {}),
        }  # fmt: skip


class ApiHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a response leaves as one packet

    def do_GET(self):
        path = self.take_call()
        if path == "":
            return self.respond(200, self.server.session())
        if path == "/policy":
            return self.respond(200, POLICY)
        if path.startswith("/values/") and path[8:] in (self.server.transcript.get("session") or {}):
            return self.respond(200, self.server.transcript["session"][path[8:]])
        return self.respond(404, {"code": "no_such_value", "title": "No such value", "status": 404})

    def do_PATCH(self):
        path = self.take_call()
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if path != "":
            self.server.faults.append(f"PATCH {path}")
        self.server.patches.append(patch)
        if refusal := self.server.transcript.get("refusal"):
            return self.respond(refusal["status"], {"title": "Refused", **refusal})
        return self.respond(200, self.server.session())

    def do_other(self):
        self.take_call()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.faults.append(f"{self.command} {self.path}")
        self.respond(405, {"code": "method_not_allowed", "title": "Not allowed", "status": 405})

    do_POST = do_PUT = do_DELETE = do_other

    def take_call(self):
        if self.headers.get_all("X-Session-Token") != [TOKEN]:
            self.server.faults.append(f"{self.command} {self.path} with another token")
        self.server.calls.put(f"{self.command} {self.path}")
        return self.path.removeprefix("/_session").split("?")[0]

    def respond(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def headers_of(transcript, mode, url):
    """Returns the headers of a request that Cloakroom forwards."""
    session = transcript.get("session")
    headers = {"x-session-url": url, "x-session-token": TOKEN}
    headers["x-session-next-id" if session is None else "x-session-id"] = NEXT_ID if session is None else ID
    if transcript.get("principal"):
        headers["x-session-principal"] = transcript["principal"]
    if mode == "headers":
        omitted = transcript.get("omitted", [])
        if session is not None:
            headers["x-session-version"] = "7"
        if omitted == "*":
            headers["x-session-data-omitted"] = "*"
        else:
            sent = {key: value for key, value in (session or {}).items() if key not in omitted}
            headers["x-session-data"] = json.dumps(sent)
            if omitted:
                headers["x-session-data-omitted"] = ",".join(omitted)
    return headers


def request_headers(transcript, mode, url):
    """Adds the proof, and makes the changes that the transcript asks for."""
    headers = headers_of(transcript, mode, url)
    changes = transcript.get("headers", {})
    kept = {name: value for name, value in headers.items() if changes.get(name, "") is not None}
    age = transcript.get("proof_age", 0)
    secret = transcript.get("proof_secret", kit.CLIENT_SECRET)
    signed = {name: value[0] if isinstance(value, list) else value for name, value in kept.items()}
    kept["x-session-proof"] = kit.proof(signed, secret, time.time() - age)
    kept.update({name: value for name, value in changes.items() if value is not None})
    if changes.get("x-session-proof", "") is None:
        del kept["x-session-proof"]
    return kept


def is_part(part, whole):
    """Returns whether all members of an object are in another."""
    return isinstance(whole, dict) and all(name in whole and whole[name] == value for name, value in part.items())


def check(transcript, mode, api, port):
    """Plays a transcript; returns its faults."""
    api.play(transcript)
    api.calls = queue.Queue()
    method, path = transcript["request"].split(" ")
    headers = request_headers(transcript, mode, api.url)
    response = kit.fetch(port, method, path, transcript.get("body"), headers)
    faults = list(api.faults)
    status = transcript.get("status", 200)
    if response.status != status:
        faults.append(f"status {response.status}, not {status}: {response.text[:200]}")
    if "response" in transcript and not is_part(transcript["response"], response.json):
        faults.append(f"response {response.text}")
    by_header = [json.loads(line) for line in response.headers.get_all("X-Session-Patch") or []]
    for line in response.headers.get_all("X-Session-Patch") or []:
        if not line.isascii():
            faults.append(f"a patch that is not ASCII: {line}")
    if api.patches and mode == "headers" and not transcript.get("calls_api") and status < 500:
        faults.append("a call of the API instead of a header")
    if by_header and (mode == "api" or status >= 500):
        faults.append("a patch by header, which is not expected")
    patches = [*api.patches, *by_header]
    calls = list(itertools.islice(iter(lambda: api.calls.get_nowait() if not api.calls.empty() else None, None), 99))
    if len([call for call in calls if call.startswith("GET")]) > transcript.get("reads", 1):
        faults.append(f"calls {calls}")
    faults += patch_faults(transcript, patches)
    return faults


def patch_faults(transcript, patches):
    part, whole = transcript.get("patch_has"), transcript.get("patch")
    if part is None and whole is None:
        return [f"an unexpected patch {json.dumps(patches)}"] if patches else []
    if len(patches) != 1:
        return [f"{len(patches)} patches: {json.dumps(patches)}"]
    if part is not None:
        return [] if is_part(part, patches[0]) else [f"patch {json.dumps(patches[0])}"]
    return [] if patches[0] == whole else [f"patch {json.dumps(patches[0])}, not {json.dumps(whole)}"]


def play(site, mode, transcripts, options, directory):
    """Runs a site and plays all transcripts that apply to it; returns how many, and those that failed."""
    api = Api()
    threading.Thread(target=api.serve_forever, daemon=True).start()
    settings = {"URL": api.url}
    if mode == "headers":
        settings["SECRETS"] = kit.secret_file(directory, kit.CLIENT_SECRET)
    log = pathlib.Path(directory) / f"{site.name}-{mode}.log"
    count, failed = 0, []
    with site.run(options, log, settings) as port:
        for transcript in transcripts:
            if mode not in transcript.get("modes", ["api", "headers"]) or set(transcript.get("needs", [])) & site.lacks.keys():
                continue
            count += 1
            try:
                faults = check(transcript, mode, api, port)
            except (OSError, ValueError) as error:
                faults = [repr(error)]
            if faults:
                failed.append(f"{site.name}, {mode}: {transcript['title']}: {'; '.join(faults)}")
    api.shutdown()
    with contextlib.suppress(FileNotFoundError):
        if failed:
            failed.append("".join(f"\n    {line}" for line in log.read_text(errors="replace").splitlines()[-15:]))
    return count, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kit.add_arguments(parser)
    parser.add_argument("--title", help="play only transcripts whose title has this text")
    options = parser.parse_args()
    transcripts = [one for file in sorted(TRANSCRIPTS.glob("*.json")) for one in json.loads(file.read_text())]
    transcripts = [one for one in transcripts if not options.title or options.title in one["title"]]
    sites = kit.sites(options.only)
    assert transcripts and sites, "nothing to play"
    all_failed = []
    with tempfile.TemporaryDirectory() as directory:
        for site in sites:
            for mode in ["api", "headers"]:
                count, failed = play(site, mode, transcripts, options, directory)
                print(f"{site.name}, {mode}: {count} transcripts, {len([one for one in failed if one[0] != chr(10)])} failed")
                all_failed += failed
    print("\n".join(all_failed))
    return 1 if all_failed else 0


if __name__ == "__main__":
    sys.exit(main())
