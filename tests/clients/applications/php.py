"""Visits PHP applications of Debian, untouched, with PHP's own sessions and with the client, and compares the pages.

    python3 tests/clients/applications/php.py --binary PATH --debian DIRECTORY [--only NAME]

The packages are unpacked, not installed; those that are missing in --debian are downloaded there. Every application is
visited by the same clicks, from before the log-in to after the log-out: behind the program without sessions, with calls
of the API and with header exchange, each with `php -n` and with Debian's php.ini, without an output buffer and with one,
and with php-fpm behind nginx if they are installed (PHP_FPM names another).
"""

import argparse
import contextlib
import difflib
import getpass
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import types
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent.parent))

import held_sites  # noqa: E402
import kit  # noqa: E402

sys.path.insert(0, str(kit.CLIENTS / "php/tests"))
import test_php  # noqa: E402

CLIENT = kit.CLIENTS / "php/cloakroom.php"
# Debian has these as shared libraries, which `php -n` does not load.
SHARED = ["ctype", "fileinfo", "gettext", "iconv", "tokenizer", "pdo", "exif", "posix"]


def password_hash(password):
    command = ["php", "-r", f"echo password_hash('{password}', PASSWORD_DEFAULT);"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Application(held_sites.Php):
    """An application, and the clicks of a visitor."""

    # Its session_name().
    session = "PHPSESSID"
    relocated = "dokuwiki|php"
    # Where the user's name is in $_SESSION.
    principal = ""
    user_name = "ada"
    title = ""
    clicked = ""
    # What pages show that only a visitor who is logged in sees.
    shows = {}
    # What else differs between two visits.
    random = None

    def relocate(self):
        absolute = re.compile(rf"(?<![\w.])/(?=(usr/share|etc|var/lib|var/cache)/({self.relocated})\b)".encode())
        for file in [*self.unpacked.rglob("*")]:
            if file.is_symlink() and os.readlink(file).startswith("/"):
                target = f"{self.unpacked}{os.readlink(file)}"
                file.unlink()
                file.symlink_to(target)
            elif file.suffix == ".php" and not file.is_symlink():
                file.write_bytes(absolute.sub(f"{self.unpacked}/".encode(), file.read_bytes()))

    def visit(self, browser):
        """Yields the name of a step and its page."""


class DokuWiki(Application, held_sites.DokuWiki):
    title = "DokuWiki 2022-07-31"
    clicked = "log-in with a wrong and the right password, three pages written, six views, search, log-out"
    session = "DokuWiki"
    shows = {"logged in": "<bdi>ada</bdi>", "page two": "text of two", "page one": ">pagetwo</a>"}

    def visit(self, browser):
        yield "home", browser.get("/doku.php?id=start")
        yield "form", browser.get("/doku.php?id=start&do=login")
        token = browser.get("/doku.php?id=start&do=login").field("sectok")
        form = {"id": "start", "do": "login", "u": "ada", "p": "wrong", "r": "1", "sectok": token}
        yield "wrong password", browser.post("/doku.php?id=start", form)
        yield "log-in", self.log_in(browser)
        yield "logged in", browser.get("/doku.php?id=start")
        for page in ["one", "two", "three"]:
            yield f"work on {page}", types.SimpleNamespace(status=self.work(browser, page), headers={}, text="")
        for page in ["one", "two", "one"]:
            yield f"page {page}", browser.get(f"/doku.php?id=page{page}")
        for action in ["edit", "revisions", "profile", "recent", "index", "media"]:
            yield action, browser.get(f"/doku.php?id=pageone&do={action}")
        yield "search", browser.get("/doku.php?id=start&do=search&q=text")
        token = re.search(r"do=logout&amp;sectok=(\w+)", browser.get(self.path).text)[1]
        yield "log-out", browser.get(f"/doku.php?id=start&do=logout&sectok={token}")
        yield "logged out", browser.get("/doku.php?id=start")


class PhpLiteAdmin(Application, held_sites.PhpLiteAdmin):
    title = "phpLiteAdmin 1.9.8.2"
    clicked = "log-in with a wrong and the right password, two databases created, a wrong token, five views, log-out"
    shows = {"logged in": "start.sqlite", "database two": "two"}

    def visit(self, browser):
        yield "form", browser.get(self.path)
        token = browser.get(self.path).field("token")
        yield "wrong password", browser.post(self.path, {"token": token, "login": "true", "password": "wrong"})
        token = browser.get(self.path).field("token")
        form = {"token": token, "login": "true", "password": "secret"}
        yield "log-in", browser.post(self.path, form)
        yield "logged in", browser.get(self.path)
        for name in ["one", "two"]:
            form = {"token": browser.get(self.path).field("token"), "new_dbname": name}
            yield f"database {name}", browser.post(self.path, form)
        yield "wrong token", browser.post(self.path, {"token": "x", "new_dbname": "three"})
        for view in ["structure", "sql", "export", "rename", "vacuum"]:
            yield view, browser.get(f"{self.path}?view={view}")
        yield "log-out", browser.get(f"{self.path}?logout=1")
        yield "logged out", browser.get(self.path)


class Shaarli(Application):
    title = "Shaarli 0.12.1"
    clicked = "installation, log-in with a wrong and the right password, eight pages, a link saved, a wrong token, log-out"
    packages = [
        "shaarli", "php-parsedown", "php-parsedown-extra", "php-oscarotero-gettext", "php-gettext-languages", "php-klogger",
        "php-malkusch-lock", "php-pubsubhubbub-publisher", "php-netscape-bookmark-parser", "php-slim", "php-psr-log",
        "php-arthurhoaro-web-thumbnailer", "php-psr-container", "php-psr-http-message", "php-pimple", "php-nikic-fast-route",
        "php-text-template", "php[0-9]*-curl", "php[0-9]*-gd", "php[0-9]*-intl", "php[0-9]*-mbstring", "php[0-9]*-xml",
    ]  # fmt: skip
    extensions = ["curl", "gd", "intl", "mbstring", "xml", "simplexml", "dom"]
    root = "usr/share/shaarli"
    session = "shaarli"
    relocated = "php|shaarli"
    principal = "username"
    shows = {"logged in": "/admin/logout", "links": "http://example.org/"}
    # Links of Shaarli, which are hashes of the time, and the secret of its API.
    random = r"""(?<=[#?/"'])[\w-]{6}(?=["'&/#?\s])|\b[0-9a-f]{12}\b"""

    def configure(self):
        for name in ["var/lib/shaarli/data", "var/cache/shaarli/tmp", "var/cache/shaarli/cache", "var/cache/shaarli/pagecache"]:
            (self.unpacked / name).mkdir(parents=True, exist_ok=True)

    def visit(self, browser):
        yield "first", browser.get("/")
        yield "install", browser.get("/install")
        yield "session test", browser.get("/install/session-test")
        yield "install form", browser.get("/install")
        form = {"setlogin": "ada", "setpassword": "secret", "continent": "Europe", "city": "Vienna", "title": "Links", "language": "en"}
        yield "installed", browser.post("/install", form)
        yield "form", browser.get("/login")
        for password in ["wrong", "secret"]:
            form = {"login": "ada", "password": password, "token": browser.get("/login").field("token")}
            yield f"log-in, {password}", browser.post("/login", form)
        yield "logged in", browser.get("/")
        for page in ["tools", "configure", "tags", "add-shaare", "export", "import", "password", "plugins"]:
            yield page, browser.get(f"/admin/{page}")
        page = browser.get("/admin/shaare?post=http%3A%2F%2Fexample.org%2F&title=Example")
        yield "new link", page
        form = {"lf_url": "http://example.org/", "lf_title": "Example", "lf_tags": "a b", "token": page.field("token")}
        yield "wrong token", browser.post("/admin/shaare", {**form, "token": "x"})
        yield "save link", browser.post("/admin/shaare", {**form, "lf_id": page.field("lf_id"), "save_edit": "Save"})
        yield "links", browser.get("/")
        yield "links per page", browser.get("/links-per-page?nb=50")
        yield "private", browser.get("/admin/visibility/private")
        yield "private links", browser.get("/")
        yield "log-out", browser.get("/admin/logout")
        yield "logged out", browser.get("/")
        yield "refused", browser.get("/admin/tools")


class PostfixAdmin(Application):
    title = "PostfixAdmin 3.3.13"
    clicked = "log-in with a wrong and the right password, five views, a domain created, a wrong token, log-out"
    packages = ["postfixadmin", "php[0-9]*-sqlite3", "php[0-9]*-mbstring"]
    extensions = ["mbstring", "pdo_sqlite", "sqlite3"]
    root = "usr/share/postfixadmin/public"
    session = "postfixadmin_session"
    relocated = "postfixadmin"
    principal = "sessid.username"
    user_name = "ada@example.org"
    shows = {"main": "ada@example.org", "domains": "example.net"}

    def configure(self):
        settings, cache = self.unpacked / "etc/postfixadmin", self.unpacked / "var/cache/postfixadmin/templates_c"
        cache.mkdir(parents=True, exist_ok=True)
        database = self.unpacked / "postfixadmin.db"
        database.touch()
        (settings / "dbconfig.inc.php").write_text(
            f"<?php $dbtype = 'sqlite'; $dbserver = $dbuser = $dbpass = ''; $dbname = '{database}';"
        )
        secret = password_hash("secret")
        (settings / "config.local.php").write_text(
            "<?php $CONF['encrypt'] = 'php_crypt:BLOWFISH'; $CONF['emailcheck_resolve_domain'] = 'NO';\n"
        )
        loaded = [word for name in self.extensions for word in ["-d", f"extension={self.library(name)}"]]
        create = f"""
            define('POSTFIXADMIN_CLI', 1); require '{self.unpacked}/{self.root}/upgrade.php';
            db_execute("INSERT INTO admin (username, password, superadmin, active, created, modified)
                VALUES ('ada@example.org', ?, 1, 1, '2026-01-01', '2026-01-01')", ['{secret}']);
        """
        command = ["php", *loaded, "-d", "error_reporting=0", "-r", create]
        subprocess.run(command, check=True, timeout=kit.PATIENCE, cwd=self.unpacked / self.root, stdout=subprocess.DEVNULL)

    def library(self, extension):
        return next(self.unpacked.glob(f"usr/lib/php/*/{extension}.so"))

    def visit(self, browser):
        yield "first", browser.get("/")
        yield "form", browser.get("/login.php")
        for password in ["wrong", "secret"]:
            token = browser.get("/login.php").field("token")
            form = {"fUsername": "ada@example.org", "fPassword": password, "token": token, "lang": "en"}
            yield f"log-in, {password}", browser.post("/login.php", form)
        yield "main", browser.get("/main.php")
        for page in ["list.php?table=domain", "list.php?table=admin", "edit.php?table=domain", "viewlog.php", "password-change.php"]:
            yield page, browser.get(f"/{page}")
        token = browser.get("/edit.php?table=domain").field("token")
        form = {"table": "domain", "token": token, "value[domain]": "example.net", "value[aliases]": "10", "value[mailboxes]": "10",
                "value[active]": "1", "value[password_expiry]": "365", "submit": "Add Domain"}  # fmt: skip
        yield "new domain", browser.post("/edit.php?table=domain", form)
        yield "domains", browser.get("/list.php?table=domain")
        yield "wrong token", browser.post("/edit.php?table=domain", {**form, "token": "x"})
        yield "log-out", browser.get("/login.php")
        yield "refused", browser.get("/main.php")


class Adminer(Application):
    """With SQLite, whose log-in needs a file of the site that enables a plugin of the package."""

    title = "Adminer 4.8.1"
    clicked = "log-in with a wrong and the right password, six views, a row written, a wrong token, expired session, log-out"
    packages = ["adminer", "php[0-9]*-sqlite3"]
    extensions = ["sqlite3"]
    root = "etc/adminer"
    session = "adminer_sid"
    relocated = "adminer"
    shows = {
        "wrong password shown": "Database does not support password.", "logged in": 'id="logout"', "rows": "first note",
        "SQL command": "Query executed OK, 1 row affected.", "more rows": "second note", "history": "second note",
        "wrong token": "Invalid CSRF token.", "saved": "Item has been updated.", "expired": "Session expired, please login again.",
        "command with log-in": "Query executed OK, 1 row affected.", "logged out": "Logout successful.", "refused": "auth[password]",
    }  # fmt: skip
    # Tokens, which are masked, and the nonce of the scripts.
    random = r"""(?<=["'])\d+:\d+(?=["'])|(?<=nonce=["'])[\w+/=]+"""

    def configure(self):
        database = self.directory / "notes.db"
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
            connection.execute("INSERT INTO notes (text) VALUES ('first note')")
            connection.commit()
        self.database = str(database)
        (self.unpacked / self.root / "index.php").write_text(f"""<?php
            function adminer_object() {{
                include_once '{self.unpacked}/usr/share/adminer/plugins/plugin.php';
                include_once '{self.unpacked}/usr/share/adminer/plugins/login-password-less.php';
                return new AdminerPlugin([new AdminerLoginPasswordLess('{password_hash("secret")}')]);
            }}
            include '{self.unpacked}/usr/share/adminer/adminer.php';
        """)

    def visit(self, browser):
        def auth(password):
            found = {"driver": "sqlite", "server": "", "username": "ada", "password": password, "db": self.database}
            return {f"auth[{name}]": value for name, value in found.items()}

        def insert(text):
            return {"query": f"INSERT INTO notes (text) VALUES ('{text}')", "limit": ""}

        home = "/?" + urllib.parse.urlencode({"sqlite": "", "username": "ada", "db": self.database})
        yield "first", browser.get("/")
        yield "wrong password", browser.post("/", auth("wrong"))
        yield "wrong password shown", browser.get(home)
        yield "log-in", browser.post("/", auth("secret"))
        yield "logged in", browser.get(home)
        for view in ["table=notes", "schema=", "dump=", "create=notes", "edit=notes", "indexes=notes"]:
            yield view, browser.get(f"{home}&{view}")
        yield "rows", browser.get(f"{home}&select=notes")
        form = {**insert("second note"), "token": browser.get(f"{home}&sql=").field("token")}
        yield "SQL command", browser.post(f"{home}&sql=", form)
        yield "more rows", browser.get(f"{home}&select=notes")
        yield "history", browser.get(f"{home}&sql=")
        yield "wrong token", browser.post(f"{home}&sql=", {**insert("third note"), "token": "1:1"})
        row = f"{home}&edit=notes&where%5Bid%5D=1"
        form = {"fields[text]": "changed note", "token": browser.get(row).field("token")}
        yield "save row", browser.post(row, form)
        yield "saved", browser.get(f"{home}&select=notes")
        # A cookie of PHP without a session, e.g. from before the client was installed.
        expired = browser.copy()
        expired.jar = {"adminer_sid": "a" * 26, "adminer_key": browser.jar["adminer_key"]}
        form = {**insert("fourth note"), "token": "1:1"}
        yield "expired", expired.post(f"{home}&sql=", form)
        yield "command with log-in", expired.post(f"{home}&sql=", {**form, **auth("secret")})
        yield "still logged in", browser.get(home)
        yield "log-out", browser.post(home, {"logout": "1", "token": browser.get(home).field("token")})
        yield "logged out", browser.get("/?sqlite=")
        yield "refused", browser.get(home)


APPLICATIONS = {
    "dokuwiki": DokuWiki, "phpliteadmin": PhpLiteAdmin, "shaarli": Shaarli, "postfixadmin": PostfixAdmin, "adminer": Adminer,
}  # fmt: skip
CONFIGURATIONS = [("-n", 0), ("-n", 4096), ("", 0), ("", 4096)]
MODES = {"stock": {"session": "off"}, "api": {}, "headers": {"header_exchange": "partial"}}


def fetch(options, names):
    """Downloads the packages that are missing."""
    version = subprocess.run(
        ["php", "-r", "echo PHP_MAJOR_VERSION, '.', PHP_MINOR_VERSION;"], capture_output=True, text=True, check=True
    ).stdout
    options.debian.mkdir(parents=True, exist_ok=True)
    for package in sorted({package for name in names for package in APPLICATIONS[name].packages}):
        if not any(options.debian.glob(f"{package}_*.deb")):
            command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package.replace("[0-9]*", version)]
            subprocess.run(command, cwd=options.debian, check=True)


def serve_by_fpm(directory, words):
    """Runs php-fpm and nginx in the place of `php -d … -S ADDRESS -t ROOT`."""
    address, root = words[words.index("-S") + 1], words[words.index("-t") + 1]
    settings = [word for option, word in zip(words, words[1:]) if option == "-d"]
    places = {"directory": directory, "log": directory / "fpm.log", "user": getpass.getuser(), "client": "", "buffer": 4096}
    pool = test_php.POOL.format(**places)
    pool = "".join(line for line in pool.splitlines(True) if "auto_prepend" not in line and "save_path" not in line)
    (directory / "fpm.conf").write_text(pool + "clear_env = no\n")
    nginx = test_php.NGINX.format(directory=directory, port=address.split(":")[1], pages=root)
    # As the rewriting rules that the applications bring for Apache.
    index = "index index.php; location / { try_files $uri $uri/ /index.php$is_args$args; }"
    (directory / "nginx.conf").write_text(nginx.replace("client_max_body_size", f"{index}\n        client_max_body_size"))
    fpm = [test_php.find_fpm(), "-n", "-F", "-R", "-y", str(directory / "fpm.conf")]
    nginx = ["nginx", "-p", directory, "-e", directory / "nginx.log", "-c", directory / "nginx.conf"]
    os.environ["PATH"] += ":/usr/sbin"
    # php-fpm has a process group of its own, so it is stopped here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with subprocess.Popen([*fpm, *(word for one in settings for word in ["-d", one])]) as server:
        try:
            while not (directory / "fpm.sock").exists():
                time.sleep(0.02)
            subprocess.run(nginx, check=False)
        finally:
            server.terminate()


@contextlib.contextmanager
def php_in_path(directory, ini, buffer, mode):
    """Makes `php` a command with the options of a configuration."""
    real = subprocess.run(["sh", "-c", "command -v php"], capture_output=True, text=True, check=True).stdout.strip()
    is_fpm = ini == "fpm"
    ini = "-n" if is_fpm else ini
    words = [real, ini, "-d", f"output_buffering={buffer}", "-d", f"include_path=.:{directory}/debian/usr/share/php"]
    if ini:
        words += [word for one in SHARED for word in ["-d", f"extension={one}"]]
    # Debian's php.ini hides errors; PHP without one shows warnings, which contain paths.
    words += ["-d", "error_reporting=0"]
    # Adminer counts failed log-ins there.
    words += ["-d", f"sys_temp_dir={directory}"]
    server = words if mode == "stock" else [*words, "-d", f"auto_prepend_file={CLIENT}"]
    if is_fpm:
        server = [sys.executable, str(HERE / "php.py"), "--serve-by-fpm", str(directory), *server]
    (directory / "bin").mkdir()
    shim = directory / "bin/php"
    shim.write_text(
        f'#!/bin/sh\ncase "$*" in *" -S "*) exec {" ".join(server)} "$@" ;; esac\n'
        f'exec {" ".join(words)} "$@"\n'
    )
    shim.chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{shim.parent}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def normalized(text, places, ports, random):
    """Removes what differs between two visits: tokens, ids, dates, directories and ports."""
    for port in ports:
        # Not within a token, which may have the same digits.
        text = re.sub(rf"(?<![0-9a-f]){port}(?![0-9a-f])", "PORT", text)
    for place in places:
        for form in [str(place), urllib.parse.quote_plus(str(place)), str(place).replace("/", r"\/")]:
            text = text.replace(form, "PLACE")
    text = re.sub(random, "RANDOM", text) if random else text
    text = text.replace(">", ">\n")
    text = re.sub(r"(?<![0-9a-f])(?:[0-9a-f]{32,}|[\w,-]{22,26}(?=[\"'&]))", "TOKEN", text)
    text = re.sub(r"\b\d{1,2}:\d\d[ap]m\b", "TIME", text)
    text = re.sub(r"\b\d{4}[-/]\d\d[-/]\d\d([ T]?\d\d:\d\d(:\d\d)?)?|\b\d\d:\d\d(:\d\d)?\b|\b1[78]\d{8}\b", "TIME", text)
    return re.sub(r"[\d.]+ ?(ms|s|seconds?)\b", "DURATION", text)


def visit(application, options, ini, buffer, mode):
    """Returns what the visitor saw, and faults."""
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(php_in_path(directory, ini, buffer, mode))
        site_port, api = kit.free_ports(2)
        site = application(options, directory, site_port)
        settings = {"CLOAKROOM_CLIENT_URL": f"http://127.0.0.1:{api}/_session"}
        if mode == "headers":
            settings["CLOAKROOM_CLIENT_SECRETS"] = str(kit.secret_file(directory, kit.CLIENT_SECRET))
            # With calls of the API it is one of several applications, whose keys have a prefix.
            settings["CLOAKROOM_CLIENT_PHP_NAME"] = site.session
        if site.principal:
            settings["CLOAKROOM_CLIENT_PRINCIPAL"] = site.principal
        os.environ.update(settings)
        stack.callback(lambda: [os.environ.pop(name) for name in settings])
        stack.enter_context(site.start())
        program = stack.enter_context(kit.Program.run(options.binary, directory, site_port, api=api, **MODES[mode]))
        browser = held_sites.Browser(program.public, types.SimpleNamespace(seen={}), set())
        seen, faults, principals = [], [], []
        for step, page in site.visit(browser):
            cookies = []
            if page.headers:
                cookies = [line.split("=")[0] for line in page.headers.get_all("Set-Cookie") or []]
            if mode != "stock" and site.session in cookies:
                faults.append(f"{step}: the site's own cookie reached the browser")
            head = [page.status, page.headers.get("Location"), sorted(set(cookies) - {site.session, "id"})]
            if site.shows.get(step, "") not in page.text:
                faults.append(f"{step} does not show {site.shows[step]}")
            ports = [program.public, site_port, api]
            seen.append((step, normalized(f"{head}\n{page.text}", [directory], ports, site.random)))
            if mode != "stock":
                principals.append(program.principals())
        if mode != "stock" and site.principal:
            if [site.user_name] not in principals:
                faults.append(f"the principal was never {site.user_name}: {principals}")
            if site.user_name in principals[-1]:
                faults.append("the principal is still there after the log-out")
        return seen, faults


def compare(stock, seen):
    faults = []
    for (step, ours), (_, theirs) in zip(seen, stock, strict=True):
        if ours != theirs:
            lines = difflib.unified_diff(theirs.splitlines(), ours.splitlines(), "own sessions", "Cloakroom", lineterm="", n=0)
            faults.append(f"{step} differs:\n" + "\n".join(f"    {line[:200]}" for line in list(lines)[:12]))
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=os.environ.get("CLOAKROOM"), help="the program")
    parser.add_argument("--debian", type=pathlib.Path, required=True, help="the directory of the packages")
    kit.add_arguments(parser)
    options = parser.parse_args()
    options.debian = options.debian.resolve()
    names = options.only or list(APPLICATIONS)
    if shutil.which("apt-get"):
        fetch(options, names)
    if missing := {one for name in names for one in APPLICATIONS[name](options, None, None).missing()}:
        print(f"missing in {options.debian}: {', '.join(sorted(missing))}")
        return 1
    all_faults = 0
    for name in names:
        visits, pages, before = 0, 0, all_faults
        for ini, buffer in CONFIGURATIONS + ([("fpm", 4096)] if test_php.find_fpm() else []):
            stock, _ = visit(APPLICATIONS[name], options, ini, buffer, "stock")
            for mode in ["api", "headers"]:
                seen, faults = visit(APPLICATIONS[name], options, ini, buffer, mode)
                faults += compare(stock, seen)
                all_faults += len(faults)
                visits, pages = visits + 1, pages + len(seen)
                what = f"{name}, php {ini or 'with php.ini'}, output_buffering {buffer}, {mode}"
                print(f"{what}: {len(seen)} pages, {len(faults)} faults", flush=True)
                print("".join(f"  {fault}\n" for fault in faults), end="")
        how = f"`auto_prepend_file`; {visits} configurations (servers, php.ini, output buffer, calls or headers)"
        result = f"{pages} pages, {all_faults - before} differences"
        application = APPLICATIONS[name]
        kit.add_row("applications", application=application.title, how=how, clicked=application.clicked, result=result)
    return 1 if all_faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve-by-fpm"]:
        serve_by_fpm(pathlib.Path(sys.argv[2]), sys.argv[3:])
    sys.exit(main())
