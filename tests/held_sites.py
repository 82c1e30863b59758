"""Visits real sites, untouched, whose session cookies the proxy holds (`hold_cookies`).

    target/venv/bin/python tests/held_sites.py --binary PATH --node target/node --debian target/debian [--only NAME]

DokuWiki and phpLiteAdmin come from the Debian packages in --debian, express-session and cookie-session from --node,
Django from the Python that runs this. A relay between the proxy and the site can hold a request before the site gets
it, or its response, and records which cookies the site set.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import html
import http.client
import http.cookies
import http.server
import json
import os
import pathlib
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse

from processes import PATIENCE, free_ports, process

HERE = pathlib.Path(__file__).resolve().parent
SERVICE_TOKEN = "service-token-of-the-tests-0123456789"
TABS = 8


class Relay(http.server.ThreadingHTTPServer):
    """Forwards to the site, and records what site and proxy said about sessions."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, site_port):
        super().__init__(("127.0.0.1", 0), RelayHandler)
        self.site_port = site_port
        self.seen = {}
        self.holds = {}

    def handle_error(self, request, client_address):
        # A proxy closes its connection if its client does.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def hold(self, key):
        self.holds[key] = (threading.Event(), threading.Event())


class RelayHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def relay(self):
        number, hold = self.headers.get("X-Number"), self.headers.get("X-Hold", "")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.wait(hold, "before:")
        site = http.client.HTTPConnection("127.0.0.1", self.server.site_port, timeout=PATIENCE)
        site.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if not name.lower().startswith("x-") and name.lower() != "connection":
                site.putheader(name, value)
        site.putheader("Connection", "close")
        site.endheaders(body)
        response = site.getresponse()
        content = response.read()
        site.close()
        given = http.cookies.SimpleCookie(self.headers.get("Cookie", ""))
        self.server.seen[number] = {
            "given": {name: morsel.value for name, morsel in given.items()},
            "set": response.headers.get_all("Set-Cookie") or [],
            "id": self.headers.get("X-Session-Id"),
        }
        self.wait(hold, "after:")
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            if name.lower() not in ["connection", "transfer-encoding", "content-length", "keep-alive"]:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def wait(self, hold, where):
        if hold.startswith(where):
            arrived, released = self.server.holds[hold.removeprefix(where)]
            arrived.set()
            released.wait(PATIENCE)

    do_GET = do_POST = relay

    def log_message(self, *_):
        pass


@dataclasses.dataclass
class Page:
    status: int
    headers: http.client.HTTPMessage
    text: str
    seen: dict

    def field(self, name):
        """Returns the value of a hidden field of a form."""
        for tag in re.findall(r"<input [^>]*>", self.text):
            attributes = dict(re.findall(r"""(\w+)=["']([^"']*)["']""", tag))
            if attributes.get("name") == name:
                return html.unescape(attributes.get("value", ""))
        return ""


class Browser:
    """A jar of cookies, shared by its tabs, that checks each response for cookies of the site."""

    numbers = iter(range(1, 1 << 30))

    def __init__(self, port, relay, held, jar=None):
        self.port, self.relay, self.held = port, relay, held
        self.jar = dict(jar or {})
        self.faults = []

    def copy(self):
        return Browser(self.port, self.relay, self.held, self.jar)

    def get(self, path, **options):
        return self.send("GET", path, **options)

    def post(self, path, form, **options):
        return self.send("POST", path, form=form, **options)

    def send(self, method, path, form=None, hold=None, keep=True, hangs_up=False):
        """Sends a request, which the relay may `hold`, and keeps the response's cookies unless it is not to."""
        number = str(next(Browser.numbers))
        headers = {
            "Sec-Fetch-Dest": "document", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin",
            "User-Agent": "Mozilla/5.0", "X-Number": number,
        }  # fmt: skip
        if self.jar:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        if hold:
            headers["X-Hold"] = hold
        body = urllib.parse.urlencode(form).encode() if form is not None else None
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, body, headers)
        if hangs_up:
            return self.hang_up(connection, hold)
        response = connection.getresponse()
        page = Page(response.status, response.headers, response.read().decode(errors="replace"), {})
        connection.close()
        page.seen = self.relay.seen.get(number, {"given": {}, "set": [], "id": None})
        if self.held:
            self.check(f"{method} {path}", page)
        if keep:
            for line in page.headers.get_all("Set-Cookie") or []:
                self.take(line)
        return page

    def hang_up(self, connection, hold):
        """Closes the connection when the site has handled the request and its response is held."""
        arrived, released = self.relay.holds[hold.split(":")[1]]
        assert arrived.wait(PATIENCE), "the request did not arrive"
        connection.close()
        released.set()

    def take(self, line):
        pair, *attributes = [part.strip() for part in line.split(";")]
        name, value = pair.split("=", 1)
        expired = any(re.match(r"(?i)max-age=(0|-.*)$|expires=.*\b19[67]\d\b", part) for part in attributes)
        if expired or value in ["", "deleted"]:
            self.jar.pop(name, None)
        else:
            self.jar[name] = value

    def check(self, what, page):
        if page.status >= 500:
            self.faults.append(f"{what}: status {page.status}: {page.text[:200]}")
        names = [line.split("=")[0] for line in page.headers.get_all("Set-Cookie") or []]
        self.faults += [f"{what}: {name} reached the browser" for name in names if name in self.held]
        set_by_site = [line for line in page.seen["set"] if line.split("=")[0] in self.held]
        for line in set_by_site:
            value = line.split(";")[0].split("=", 1)[1]
            if len(value) >= 16 and value in str(page.headers):
                self.faults.append(f"{what}: a value of the site's cookie is in the response's head")
        control = page.headers.get("Cache-Control", "")
        if set_by_site and "no-store" not in control:
            self.faults.append(f"{what}: sets a held cookie, with Cache-Control {control!r}")
        if self.held & page.seen["given"].keys() and not re.search("no-store|private", control):
            self.faults.append(f"{what}: held cookies were given, with Cache-Control {control!r}")


class Site:
    """How to configure the proxy for a site, and how to visit it."""

    # The held cookies, their `rotate`, and the requests that rotate.
    held = []
    rotate = True
    rotate_on = []
    # Whether the cookies of the log-in stay when the browser is closed.
    is_lasting = False
    # Whether a slow request undoes a log-in without the proxy.
    loses_log_ins = False
    # The log-ins that it takes after one whose answer was lost.
    log_ins_after_loss = 1
    # A page that shows who is logged in.
    path = "/"

    def __init__(self, options, directory, port):
        self.options, self.directory, self.port = options, directory, port

    def missing(self):
        """Returns the packages that this system does not have."""
        return []

    def start(self):
        """Returns the running site, a context manager."""

    def log_in(self, browser, user="ada", **options):
        """Opens the form of the log-in, sends it and returns the response."""

    def user(self, browser):
        """Returns who is logged in."""

    def work(self, browser, tab):
        """Changes something in a tab, parallel to others. Returns whether the site showed it."""

    def worked(self, browser):
        """Returns whether the work of all tabs was kept."""

    def log_out(self, browser):
        """Logs out as the site's own pages do."""


class Node(Site):
    """The site of held/site.cjs. Its means read and write a session as a whole, so parallel writes may get lost."""

    means = None
    keeps_parallel_writes = False

    def start(self):
        command = ["node", HERE / "held/site.cjs", str(self.port), self.means]
        environment = {**os.environ, "NODE_PATH": str(self.options.node / "node_modules")}
        return process(command, self.port, env=environment)

    def log_in(self, browser, user="ada", **options):
        return browser.post("/login", {"user": user}, **options)

    def user(self, browser):
        return json.loads(browser.get("/").text)["user"]

    def work(self, browser, tab):
        if self.keeps_parallel_writes:
            browser.post("/note", {"text": f"note {tab}"})
        return self.user(browser) == "ada"

    def worked(self, browser):
        if not self.keeps_parallel_writes:
            for tab in range(TABS):
                browser.post("/note", {"text": f"note {tab}"})
        return sorted(json.loads(browser.get("/").text)["notes"]) == [f"note {tab}" for tab in range(TABS)]

    def log_out(self, browser):
        browser.post("/logout", {})


class ExpressSession(Node):
    means = "express-session"
    held = ["connect.sid"]
    loses_log_ins = True


class Rolling(ExpressSession):
    means = "rolling"
    is_lasting = True


class CookieSession(Node):
    means = "cookie-session"
    held = ["session", "session.sig"]
    rotate = False
    rotate_on = ["POST /login"]
    loses_log_ins = True


class Changing(Node):
    means = "changing"
    keeps_parallel_writes = True
    held = ["changing"]
    rotate = False
    rotate_on = ["POST /login"]
    loses_log_ins = True


class DjangoAdmin(Site):
    held = ["sessionid"]
    path = "/admin/"
    is_lasting = True
    loses_log_ins = True

    def start(self):
        manage = [sys.executable, HERE / "held/django_admin.py"]
        environment = {**os.environ, "DATABASE": str(self.directory / "db"), "DJANGO_SUPERUSER_PASSWORD": "secret"}
        create = ["createsuperuser", "-v0", "--noinput", "--email", "a@example.com", "--username"]
        for command in [["migrate", "-v0"], [*create, "ada"], [*create, "bob"]]:
            subprocess.run([*manage, *command], env=environment, check=True, timeout=PATIENCE)
        command = [*manage, "runserver", "--noreload", str(self.port)]
        return process(command, self.port, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def log_in(self, browser, user="ada", **options):
        form = {"username": user, "password": "secret", "next": "/admin/"}
        return self.fill(browser, "/admin/login/", form, **options)

    def fill(self, browser, path, form, **options):
        # An admin who is logged in gets no form of the log-in; the cookie's token does as well.
        token = browser.get(path).field("csrfmiddlewaretoken") or browser.jar["csrftoken"]
        return browser.post(path, {**form, "csrfmiddlewaretoken": token}, **options)

    def user(self, browser):
        found = re.search(r"<strong>(\w+)</strong>", browser.get("/admin/").text)
        return found and found[1]

    def work(self, browser, tab):
        return self.fill(browser, "/admin/auth/group/add/", {"name": f"group {tab}"}).status == 302

    def worked(self, browser):
        text = browser.get("/admin/auth/group/").text
        return all(f">group {tab}<" in text for tab in range(TABS))

    def log_out(self, browser):
        token = browser.jar.get("csrftoken", "")
        browser.post("/admin/logout/", {"csrfmiddlewaretoken": token})


class Php(Site):
    """A site of Debian packages, unpacked in a directory: absolute paths are changed, and nothing else."""

    packages = []
    extensions = []
    root = None
    is_lasting = True

    def files(self, package):
        return [*self.options.debian.glob(f"{package}_*.deb")]

    def missing(self):
        return [package for package in self.packages if not self.files(package)]

    def start(self):
        unpacked = self.unpacked = self.directory / "debian"
        for package in self.packages:
            [file] = self.files(package)
            subprocess.run(["dpkg-deb", "-x", file, unpacked], check=True, timeout=PATIENCE)
        self.relocate()
        self.configure()
        (self.directory / "sessions").mkdir()
        settings = [f"session.save_path={self.directory / 'sessions'}", "display_errors=0"]
        loaded = subprocess.run(["php", "-m"], capture_output=True, text=True, check=True).stdout.split()
        for extension in self.extensions:
            if extension not in loaded:
                [file] = unpacked.glob(f"usr/lib/php/*/{extension}.so")
                settings.append(f"extension={file}")
        command = ["php", *(word for setting in settings for word in ["-d", setting])]
        command += ["-S", f"127.0.0.1:{self.port}", "-t", unpacked / self.root]
        environment = {**os.environ, "PHP_CLI_SERVER_WORKERS": "6"}
        return process(command, self.port, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def relocate(self):
        absolute = re.compile(rb"/(?=(usr/share|etc|var/lib)/(dokuwiki|php))")
        for file in [*self.unpacked.rglob("*")]:
            if file.is_symlink() and os.readlink(file).startswith("/"):
                target = f"{self.unpacked}{os.readlink(file)}"
                file.unlink()
                file.symlink_to(target)
            elif file.suffix == ".php":
                file.write_bytes(absolute.sub(f"{self.unpacked}/".encode(), file.read_bytes()))


class DokuWiki(Php):
    packages = ["dokuwiki", "libphp-simplepie", "php-geshi", "php-phpseclib", "php[0-9]*-xml"]
    extensions = ["xml", "dom"]
    root = "usr/share/dokuwiki"
    loses_log_ins = True
    path = "/doku.php?id=start"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        # DokuWiki's log-in cookie has the name of its path and port.
        self.held = ["DokuWiki", "DW" + hashlib.md5(f"/{self.port}".encode()).hexdigest()]

    def configure(self):
        shared, settings = self.unpacked / "var/lib/dokuwiki", self.unpacked / "etc/dokuwiki"
        (shared / "acl").mkdir(exist_ok=True)
        secret = hashlib.md5(b"secret").hexdigest()
        users = [f"{name}:{secret}:{name}:a@example.com:user\n" for name in ["ada", "bob"]]
        (shared / "acl/users.auth.php").write_text("".join(users))
        (shared / "acl/acl.auth.php").write_text("*\t@ALL\t1\n*\t@user\t8\n")
        (settings / "local.php").write_text("<?php\n$conf['useacl'] = 1;\n$conf['superuser'] = 'root';\n")

    def log_in(self, browser, user="ada", **options):
        token = browser.get("/doku.php?id=start&do=login").field("sectok")
        form = {"id": "start", "do": "login", "u": user, "p": "secret", "r": "1", "sectok": token}
        return browser.post("/doku.php?id=start", form, **options)

    def user(self, browser):
        found = re.search(r'class="user">.*?<bdi>(\w+)</bdi>', browser.get(self.path).text)
        return found and found[1]

    def work(self, browser, tab):
        editor = browser.get(f"/doku.php?id=page{tab}&do=edit")
        names = ["sectok", "id", "rev", "date", "prefix", "suffix", "changecheck", "target"]
        form = {**{name: editor.field(name) for name in names}, "wikitext": f"text of {tab}", "do[save]": "1"}
        browser.post(f"/doku.php?id=page{tab}", form)
        return f"text of {tab}" in browser.get(f"/doku.php?id=page{tab}").text

    def worked(self, browser):
        # Which pages were visited is in DokuWiki's session.
        page = browser.get(self.path).text
        return all(f">page{tab}</a>" in page for tab in range(TABS))

    def log_out(self, browser):
        token = re.search(r"do=logout&amp;sectok=(\w+)", browser.get(self.path).text)[1]
        browser.get(f"/doku.php?id=start&do=logout&sectok={token}")


class PhpLiteAdmin(Php):
    """Has one user. It keeps its session id at the log-in, which shows by its remember-me cookies."""

    packages = ["phpliteadmin", "php[0-9]*-sqlite3", "php[0-9]*-mbstring"]
    extensions = ["mbstring", "sqlite3"]
    root = "usr/share/phpliteadmin"
    path = "/phpliteadmin.php"
    held = ["PHPSESSID", "pla3412_1_9_8_2", "pla3412_1_9_8_2_salt"]
    # The token of the form is in the session of the site, whose id the lost log-in has claimed.
    log_ins_after_loss = 2

    def configure(self):
        databases = self.unpacked / "var/lib/phpliteadmin"
        databases.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(databases / "start.sqlite")) as database:
            database.execute("CREATE TABLE start (n)")
        settings = f"<?php $password = 'secret'; $directory = '{databases}';"
        (self.unpacked / "etc/phpliteadmin.config.php").write_text(settings)

    def log_in(self, browser, user="ada", **options):
        token = browser.get(self.path).field("token")
        form = {"token": token, "login": "true", "password": "secret", "remember": "yes"}
        return browser.post(self.path, form, **options)

    def user(self, browser):
        return None if "id='loginBox'" in browser.get(self.path).text else "ada"

    def work(self, browser, tab):
        form = {"token": browser.get(self.path).field("token"), "new_dbname": f"base{tab}"}
        return f"base{tab}" in browser.post(self.path, form).text

    def worked(self, browser):
        text = browser.get(self.path).text
        return all(f"base{tab}" in text for tab in range(TABS))

    def log_out(self, browser):
        browser.get(f"{self.path}?logout=1")


SITES = {
    "DokuWiki": DokuWiki,
    "phpLiteAdmin": PhpLiteAdmin,
    "Django admin": DjangoAdmin,
    "express-session": ExpressSession,
    "express-session, rolling": Rolling,
    "cookie-session": CookieSession,
    "a cookie that always changes": Changing,
}


class World:
    """A site, and the proxy in front of it."""

    def __init__(self, options, directory, site_class):
        site_port, self.public, self.api, self.admin = free_ports(4)
        self.site = site_class(options, directory, site_port)
        self.relay = Relay(site_port)
        self.options, self.directory = options, directory
        self.faults = []

    @contextlib.contextmanager
    def running(self):
        rotate = str(self.site.rotate).lower()
        held = [f'{{ name = "{name}", rotate = {rotate} }}' for name in self.site.held]
        (self.directory / "cloakroom.toml").write_text(
            f'[[listen]]\naddress = "127.0.0.1:{self.public}"\n'
            f'[api]\naddress = "127.0.0.1:{self.api}"\nservice_token = {{ file = "service-token" }}\n'
            f'[admin]\naddress = "127.0.0.1:{self.admin}"\n[store]\nurl = "memory:"\n[log]\nlevel = "trace"\n'
            f'[[route]]\nupstream = "http://127.0.0.1:{self.relay.server_port}"\nheader_exchange = true\n'
            f"hold_cookies = [{', '.join(held)}]\nrotate_on = {json.dumps(self.site.rotate_on)}\n"
        )
        (self.directory / "service-token").write_text(SERVICE_TOKEN)
        (self.directory / "service-token").chmod(0o600)
        threading.Thread(target=self.relay.serve_forever, daemon=True).start()
        command = [self.options.binary, "run", "--config", self.directory / "cloakroom.toml"]
        environment = {"STATE_DIRECTORY": str(self.directory)}
        with open(self.directory / "log", "wb") as log, self.site.start():
            with process(command, self.public, env=environment, stderr=log):
                yield self
        self.relay.shutdown()

    def browser(self):
        return Browser(self.public, self.relay, set(self.site.held))

    def alone(self):
        """Returns a browser that visits the site without the proxy."""
        return Browser(self.relay.server_port, self.relay, set())

    def rotations(self):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.admin)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        return int(re.search(r'^cloakroom_session_events_total\{event="rotated"\} (\d+)', text, re.M)[1])

    def revoke(self, session):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.api)) as connection:
            headers = {"Authorization": f"Bearer {SERVICE_TOKEN}"}
            connection.request("DELETE", f"/_sessions/{session}", headers=headers)
            return connection.getresponse().status


    def check_log(self):
        """Returns a fault if the log has a value of the site's cookies."""
        log = (self.directory / "log").read_text()
        lines = [line for seen in self.relay.seen.values() for line in seen["set"]]
        pairs = [line.split(";")[0].split("=", 1) for line in lines]
        values = {value for name, value in pairs if name in self.site.held and len(value) >= 16}
        assert values and log, "nothing to search for, or in"
        return [f"the log has the value {value} of a held cookie" for value in values if value in log]


def slow_log_in(world, browser, where, first):
    """Logs in beside a request that was sent before and is answered after. Returns who is logged in then."""
    site, relay = world.site, world.relay
    if first:
        site.log_in(browser, first)
    else:
        browser.get(site.path)
    key = f"{id(browser)}"
    relay.hold(key)
    with concurrent.futures.ThreadPoolExecutor() as tabs:
        slow = tabs.submit(browser.get, site.path, hold=f"{where}:{key}")
        arrived, released = relay.holds[key]
        assert arrived.wait(PATIENCE), "the slow request did not arrive"
        site.log_in(browser)
        released.set()
        slow.result(PATIENCE)
    return site.user(browser)


SLOW = [(where, first) for where in ["before", "after"] for first in [None, "bob"]]


def log_in_and_out(world):
    """Log-in, work in tabs in parallel, log-out; a planted token is not logged in."""
    site, browser = world.site, world.browser()
    browser.get(site.path)
    planted = browser.copy()
    assert site.user(browser) is None
    before = world.rotations()
    page = site.log_in(browser)
    assert site.user(browser) == "ada"
    ours = [line for line in page.headers.get_all("Set-Cookie") or [] if line.startswith("__Host-id=")]
    assert [("Max-Age" in line) for line in ours] == [site.is_lasting], ours
    # A visitor without a session has nothing to rotate.
    expected = 1 if "__Host-id" in planted.jar else 0
    assert world.rotations() - before == expected, f"{world.rotations() - before} rotations"
    assert site.user(planted) is None, "the planted token is logged in"
    with concurrent.futures.ThreadPoolExecutor(TABS) as tabs:
        kept = list(tabs.map(lambda tab: site.work(browser, tab), range(TABS)))
    assert all(kept), kept
    assert site.worked(browser), "work was lost"
    assert site.user(browser) == "ada"
    old = browser.copy()
    site.log_out(browser)
    assert site.user(browser) is None
    assert site.user(old) is None, "the old jar is logged in after the log-out"
    return [browser, planted, old]


def slow_request(world):
    """A request that is sent before the log-in and answered after it undoes nothing."""
    browsers = []
    for where, first in SLOW:
        browser = world.browser()
        user = slow_log_in(world, browser, where, first)
        assert user == "ada", f"{user} is logged in after a request held {where} the site, {first} before"
        browsers.append(browser)
    return browsers


def without_the_proxy(world):
    """Without the proxy, slow requests undo log-ins at the sites that are said to."""
    lost = sum(slow_log_in(world, world.alone(), where, first) != "ada" for where, first in SLOW)
    assert bool(lost) == world.site.loses_log_ins, f"{lost} log-ins are lost"
    return []


def lost_answer(world):
    """The answer to the log-in is lost, or the browser hangs up before it; the second one succeeds."""
    browsers = []
    for first in [None, "bob"]:
        for hangs_up in [False, True]:
            browser = world.browser()
            if first:
                world.site.log_in(browser, first)
            browser.get(world.site.path)
            key = f"{id(browser)}"
            world.relay.hold(key)
            options = {"hold": f"after:{key}", "hangs_up": True} if hangs_up else {"keep": False}
            world.site.log_in(browser, **options)
            for _ in range(world.site.log_ins_after_loss):
                world.site.log_in(browser)
            user = world.site.user(browser)
            assert user == "ada", f"{user} is logged in, {first} before, hangs_up={hangs_up}"
            browsers.append(browser)
    return browsers


def revocation(world):
    """After the session was ended from outside, its jar opens nothing."""
    browser = world.browser()
    world.site.log_in(browser)
    assert world.site.user(browser) == "ada"
    old = browser.copy()
    session = browser.get(world.site.path).seen["id"]
    assert world.revoke(session) == 204, session
    assert world.site.user(browser) is None
    assert world.site.user(old) is None
    return [browser, old]


def copy_of_the_sites_cookie(world):
    """A copy of the site's own cookie opens nothing."""
    alone = world.alone()
    world.site.log_in(alone)
    assert world.site.user(alone) == "ada"
    browser = world.browser()
    browser.jar = dict(alone.jar)
    assert world.site.user(browser) is None
    return [browser]


SCENARIOS = [log_in_and_out, slow_request, without_the_proxy, lost_answer, revocation, copy_of_the_sites_cookie]


def visit(options, name):
    """Returns the number of failed scenarios."""
    failed = 0

    def report(what, faults):
        print(f"{'FAILED' if faults else 'ok    '}  {name}: {what}", *faults, sep="\n        ", flush=True)
        return bool(faults)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        world = World(options, pathlib.Path(directory), SITES[name])
        if missing := world.site.missing():
            print(f"skipped {name}: needs {', '.join(missing)}")
            return 0
        with world.running():
            for scenario in SCENARIOS:
                try:
                    faults = [fault for browser in scenario(world) for fault in browser.faults]
                except Exception:
                    faults = [traceback.format_exc()]
                failed += report(scenario.__doc__, faults)
        failed += report("No log line has a value of the site's cookie.", world.check_log())
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--node", type=pathlib.Path, required=True)
    parser.add_argument("--debian", type=pathlib.Path, required=True)
    parser.add_argument("--only", choices=SITES)
    options = parser.parse_args()
    for name in ["binary", "node", "debian"]:
        setattr(options, name, getattr(options, name).resolve())
    sys.exit(sum(visit(options, name) for name in SITES if options.only in [None, name]) and 1)


if __name__ == "__main__":
    began = time.monotonic()
    try:
        main()
    finally:
        print(f"{time.monotonic() - began:.0f} s")
