"""What the tests of the clients share: the clients' sites, the program, and visitors."""

import base64
import contextlib
import dataclasses
import hashlib
import hmac
import http.client
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from processes import PATIENCE, free_ports, process, wait_for  # noqa: E402

CLIENTS = HERE.parent.parent / "clients"
CLIENT_SECRET = "the-client-secret-of-the-tests-0123456789"
# How a client reads and writes the session.
MODE_NAMES = {"api": "calls", "headers": "header exchange"}
SERVICE_TOKEN = "the-service-token-of-the-tests-0123456789"


@dataclasses.dataclass
class Site:
    """A site that uses a client, as a `sites.json` describes it."""

    name: str
    command: list
    here: pathlib.Path
    environment: dict = dataclasses.field(default_factory=dict)
    stock: dict | None = None
    redis: dict | None = None
    production: dict | None = None
    lacks: dict = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def run(self, options, log, settings, form=None):
        """Starts the site, with the settings of its client or in another form of `sites.json`, and gives its port."""
        [port] = free_ports(1)
        described = {**dataclasses.asdict(self), **(form and getattr(self, form) or {})}
        places = {"port": port, "here": self.here, **vars(options)}
        command = [word.format(**places) for word in described["command"]]
        own = {name: value.format(**places) for name, value in described["environment"].items()}
        client = {f"CLOAKROOM_CLIENT_{name}": str(value) for name, value in settings.items()}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **own, **client}
        with showing(log), open(log, "ab") as file, process(
            command, port, env=environment, cwd=self.here, stdout=file, stderr=subprocess.STDOUT
        ):
            yield port


def sites(only=None):
    found = []
    for file in sorted(CLIENTS.glob("*/tests/sites.json")):
        found += [Site(here=file.parent, **described) for described in json.loads(file.read_text())]
    return [site for site in found if not only or site.name in only]


def add_arguments(parser):
    parser.add_argument("--python", default=sys.executable, help="a Python with the frameworks")
    parser.add_argument("--modules", default="", help="the directory of the Node packages")
    parser.add_argument("--only", action="append", help="the name of a site; may be repeated")


@contextlib.contextmanager
def showing(log):
    """Prints the end of a log if the block fails."""
    try:
        yield
    except Exception:
        print(pathlib.Path(log).read_text(errors="replace")[-2000:])
        raise


class Program:
    """The program in front of a site, with a store in memory."""

    def __init__(self, public, api, admin):
        self.public, self.api, self.admin = public, api, admin
        self.url = f"http://127.0.0.1:{api}/_session"

    @classmethod
    @contextlib.contextmanager
    def run(cls, binary, directory, site, api=None, store="memory:", **route):
        """Starts the program with these keys of the route."""
        ports = free_ports(3)
        ports[1] = api or ports[1]
        keys = "\n".join(f"{name} = {json.dumps(value)}" for name, value in route.items())
        key = base64.urlsafe_b64encode(hashlib.sha256(b"key").digest()).decode().rstrip("=")
        file = pathlib.Path(directory) / f"cloakroom-{ports[0]}.toml"
        file.write_text(f"""
[[listen]]
address = "127.0.0.1:{ports[0]}"
[admin]
address = "127.0.0.1:{ports[2]}"
[api]
address = "127.0.0.1:{ports[1]}"
service_token = {{ file = "{secret_file(directory, SERVICE_TOKEN)}" }}
client_secret = {{ file = "{secret_file(directory, CLIENT_SECRET)}" }}
[store]
url = "{store}"
[session]
keys = ["{key}"]
[cookie]
secure = false
name = "id"
[[route]]
upstream = "http://127.0.0.1:{site}"
{keys}
""")
        log = file.with_suffix(".log")
        with showing(log), open(log, "wb") as output, process(
            [binary, "run", "--config", file], ports[0], stderr=output
        ):
            yield cls(*ports)

    def visitor(self):
        return Visitor(self.public)

    def api_calls(self):
        """Returns how many calls the session API has received."""
        lines = fetch(self.admin, "GET", "/metrics").text.splitlines()
        counts = [line.rsplit(" ", 1)[1] for line in lines if line.startswith("cloakroom_api_requests_total")]
        return sum(int(float(count)) for count in counts)

    def service(self, method, path):
        """Calls the API for any session."""
        headers = {"Authorization": f"Bearer {SERVICE_TOKEN}"}
        return fetch(self.api, method, f"/_sessions{path}", headers=headers)

    def principals(self):
        return [session["principal"] for session in self.service("GET", "").json["sessions"]]


def unpack(debian, packages, directory):
    """Unpacks Debian packages, given by patterns of their names; returns the directory."""
    unpacked = pathlib.Path(directory) / "debian"
    for package in packages:
        [file] = pathlib.Path(debian).glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", file, unpacked], check=True, timeout=PATIENCE)
    return unpacked


def add_row(table, **cells):
    """Adds a row to a table of docs/explanation/clients.md, if that is to be written."""
    if "CLIENT_ROWS" in os.environ:
        with open(os.environ["CLIENT_ROWS"], "a") as file:
            file.write(json.dumps({"table": table, **cells}) + "\n")


def secret_file(directory, text):
    file = pathlib.Path(directory) / hashlib.sha256(text.encode()).hexdigest()[:8]
    with contextlib.suppress(FileExistsError), open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as new:
        new.write(text + "\n")
    return file


@dataclasses.dataclass
class Response:
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self):
        return json.loads(self.text)


def fetch(port, method, path, body=None, headers=None, timeout=PATIENCE):
    """Sends one request on a connection of its own; a body is sent as JSON, a value of a header may be a list."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    content = None if body is None else json.dumps(body).encode()
    connection.putrequest(method, path)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        for one in value if isinstance(value, list) else [value]:
            connection.putheader(name, one)
    connection.putheader("Content-Length", str(len(content or b"")))
    connection.endheaders(content)
    with contextlib.closing(connection):
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read().decode(errors="replace"))


class Visitor:
    """A browser with the cookies that it was given."""

    def __init__(self, port, jar=None):
        self.port, self.jar = port, dict(jar or {})

    def copy(self):
        return Visitor(self.port, self.jar)

    def send(self, method, path, body=None, expects=200, **parameters):
        """Sends a request and checks the status, unless any is expected (None)."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        headers = {"Sec-Fetch-Dest": "empty", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
        if self.jar:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        response = fetch(self.port, method, path + query, body, headers)
        for line in response.headers.get_all("Set-Cookie") or []:
            name, value = line.split(";")[0].split("=", 1)
            if "max-age=0" in line.lower():
                self.jar.pop(name, None)
            else:
                self.jar[name] = value
        if expects is not None:
            assert response.status == expects, f"{method} {path}: {response.status} {response.text[:300]}"
        return response

    def change(self, *ops, **parameters):
        return self.send("POST", "/change", list(ops), **parameters)

    def values(self):
        return self.send("GET", "/read").json["values"]

    def id(self):
        return self.send("GET", "/id").json["id"]

    def who(self):
        return self.send("GET", "/who").json["principal"]

    def log_in(self, name, **parameters):
        return self.send("POST", "/login", [], name=name, **parameters)


SIGNED = ["url", "token", "id", "next-id", "principal", "version", "data", "data-omitted", "error"]


def proof(headers, secret=CLIENT_SECRET, at=None):
    """Returns the value of X-Session-Proof (docs/reference/headers.md)."""
    at = int(time.time() if at is None else at)
    names = [f"x-session-{name}" for name in SIGNED]
    lines = ["cloakroom-proof-v1", str(at), *(f"{name}:{headers[name]}" for name in names if name in headers)]
    mac = hmac.digest(secret.encode(), "\n".join(lines).encode(), hashlib.sha256)
    return f"v1 t={at} m={base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
