"""Tests of the client for PHP, with the real PHP and the real program.

    python3 clients/php/tests/test_php.py

CLOAKROOM is the program (target/debug/cloakroom). Every test of `Pages` runs with calls of the API and with header
exchange, with and without an output buffer, and with and without Debian's php.ini.
"""

import base64
import contextlib
import getpass
import hashlib
import http.server
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/clients"))

import kit  # noqa: E402

PROGRAM = os.environ.get("CLOAKROOM", str(ROOT / "target/debug/cloakroom"))
CLIENT = HERE.parent / "cloakroom.php"
HAS_INI = any(pathlib.Path("/etc/php").glob("*/cli/php.ini"))
SHOWN_ID = re.compile(r"[a-zA-Z0-9,-]{22,24}")


class Php:
    """PHP's own server with the client, behind the program."""

    def __init__(self, has_ini=False, buffer=0, is_exchange=False, ini=(), wrapper=(), **settings):
        self.ini = ["-d", f"output_buffering={buffer}", *(word for one in ini for word in ["-d", one])]
        self.has_ini, self.is_exchange, self.settings, self.wrapper = has_ini, is_exchange, settings, wrapper
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.directory = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.pages = self.directory / "pages"
        self.pages.mkdir()
        self.log = self.directory / "php.log"
        api, self.port = kit.free_ports(2)
        settings = {"URL": f"http://127.0.0.1:{api}/_session", **self.settings}
        route = {}
        if self.is_exchange:
            settings.setdefault("SECRETS", kit.secret_file(self.directory, kit.CLIENT_SECRET))
            route = {"header_exchange": "partial"}
        environment = {f"CLOAKROOM_CLIENT_{name}": str(value) for name, value in settings.items()}
        self.start_site(environment)
        self.program = self.stack.enter_context(
            kit.Program.run(PROGRAM, self.directory, self.port, api=api, **route)
        )
        return self

    def start_site(self, environment):
        command = [*self.wrapper, "php", *([] if self.has_ini else ["-n"]), *self.ini]
        command += ["-d", f"auto_prepend_file={CLIENT}", "-d", f"session.save_path={self.directory}"]
        command += ["-S", f"127.0.0.1:{self.port}", "-t", self.pages]
        environment = {**os.environ, "PHP_CLI_SERVER_WORKERS": "4", **environment}
        with open(self.log, "ab") as log:
            self.stack.enter_context(
                kit.process(command, self.port, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )

    def __exit__(self, *_):
        self.stack.close()

    def page(self, code):
        """Creates a page with this code and returns its path."""
        name = hashlib.sha256(code.encode()).hexdigest()[:16] + ".php"
        (self.pages / name).write_text(f"<?php {code}")
        return f"/{name}"

    def logged(self):
        return self.log.read_text(errors="replace")


def find_fpm():
    """Returns php-fpm, which has its version in its name in Debian, if there is nginx for it."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    if not shutil.which("nginx", path=path):
        return None
    found = [shutil.which(name, path=path) for name in ["php-fpm", "php-fpm8.2", "php-fpm8.4"]]
    return os.environ.get("PHP_FPM") or next((one for one in found if one), None)


NGINX = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    proxy_temp_path {directory}/nginx-proxy;
    scgi_temp_path {directory}/nginx-scgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    server {{
        listen 127.0.0.1:{port};
        root {pages};
        client_max_body_size 8m;
        location ~ \.php$ {{
            include /etc/nginx/fastcgi_params;
            fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;
            fastcgi_pass unix:{directory}/fpm.sock;
        }}
    }}
}}
"""

POOL = """
[global]
error_log = {log}
daemonize = no
[www]
listen = {directory}/fpm.sock
user = {user}
listen.owner = {user}
listen.mode = 0666
pm = static
pm.max_children = 4
catch_workers_output = yes
php_admin_value[auto_prepend_file] = {client}
php_admin_value[error_log] = {log}
php_admin_value[session.save_path] = {directory}
php_admin_value[output_buffering] = {buffer}
"""


class Fpm(Php):
    """php-fpm behind nginx, with nginx's own limits."""

    def start_site(self, environment):
        user = getpass.getuser()
        places = {"directory": self.directory, "pages": self.pages, "port": self.port, "log": self.log, "user": user}
        pool = POOL.format(client=CLIENT, buffer=self.ini[1].split("=")[1], **places)
        # The command of the guide: settings are part of the pool.
        pool += "".join(f'env[{name}] = "{value}"\n' for name, value in environment.items())
        (self.directory / "fpm.conf").write_text(pool)
        (self.directory / "nginx.conf").write_text(NGINX.format(**places))
        self.log.touch()
        self.log.chmod(0o666)
        fpm = [find_fpm(), "-n", "-F", "-R", "-y", self.directory / "fpm.conf"]
        server = subprocess.Popen(fpm, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.stack.callback(server.wait, timeout=kit.PATIENCE)
        self.stack.callback(server.terminate)
        nginx = ["nginx", "-p", self.directory, "-e", self.directory / "nginx.log", "-c", self.directory / "nginx.conf"]
        self.stack.enter_context(
            kit.process(nginx, self.port, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"})
        )
        while not (self.directory / "fpm.sock").exists():
            assert server.poll() is None, self.logged()
            time.sleep(0.02)


def find_apache():
    """Returns Apache and the directory of its modules, if mod_php is there."""
    found = os.environ.get("APACHE") or shutil.which("apache2", path=f"{os.environ['PATH']}:/usr/sbin")
    modules = pathlib.Path(os.environ.get("APACHE_MODULES", "/usr/lib/apache2/modules"))
    return (found, modules) if found and any(modules.glob("libphp*.so")) else None


APACHE = """
ServerRoot {directory}
ServerName localhost
PidFile {directory}/apache.pid
Mutex file:{directory}
ErrorLog {log}
Listen 127.0.0.1:{port}
LoadModule mpm_prefork_module {modules}/mod_mpm_prefork.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule env_module {modules}/mod_env.so
LoadModule dir_module {modules}/mod_dir.so
LoadModule php_module {php}
PHPINIDir {directory}
DocumentRoot {pages}
DirectoryIndex index.php
php_admin_value auto_prepend_file {client}
php_admin_value session.save_path {directory}
php_admin_value output_buffering {buffer}
<Directory {pages}>
    Require all granted
</Directory>
<FilesMatch \.php$>
    SetHandler application/x-httpd-php
</FilesMatch>
"""


class Apache(Php):
    """Apache with mod_php."""

    def start_site(self, environment):
        command, modules = find_apache()
        for one in [self.directory, self.pages]:
            one.chmod(0o755)  # Apache gives up root
        for one in self.directory.glob("????????"):
            one.chmod(0o644)  # the secret, too
        (self.directory / "apache.conf").write_text(
            APACHE.format(
                directory=self.directory, log=self.log, port=self.port, modules=modules, pages=self.pages,
                php=next(modules.glob("libphp*.so")), client=CLIENT, buffer=self.ini[1].split("=")[1],
            )
            + "".join(f"SetEnv {name} {value}\n" for name, value in environment.items())
        )  # fmt: skip
        (self.directory / "php.ini").write_text("log_errors = 1\n")
        apache = [command, "-DFOREGROUND", "-f", self.directory / "apache.conf"]
        self.stack.enter_context(kit.process(apache, self.port, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))


class Visitor(kit.Visitor):
    """A browser that opens pages by their code."""

    def __init__(self, php, jar=None):
        super().__init__(php.program.public, jar)
        self.php = php

    def copy(self):
        return Visitor(self.php, self.jar)

    def open(self, code, expects=200, method="POST"):
        return self.send(method, self.php.page(code), expects=expects)

    def show(self, expression, expects=200):
        """Returns what an expression is after session_start()."""
        return json.loads(self.open(f"session_start(); echo json_encode({expression});", expects).text)

    def stored(self):
        """Returns the values as Cloakroom has them."""
        found = [one["id"] for one in self.php.program.service("GET", "").json["sessions"]]
        return [self.php.program.service("GET", f"/{one}").json["values"] for one in found]


class Pages:
    """What holds in all configurations."""

    options = {}
    server = Php

    @classmethod
    def setUpClass(cls):
        cls.php = cls.server(**cls.options).__enter__()
        cls.addClassCleanup(cls.php.__exit__)

    def setUp(self):
        self.visitor = Visitor(self.php)
        self.was_logged = len(self.php.logged())

    def tearDown(self):
        for one in self.php.program.service("GET", "").json["sessions"]:
            self.php.program.service("DELETE", f"/{one['id']}")

    def logged(self):
        return self.php.logged()[self.was_logged :]

    # The head of the response

    def test_values_set_after_output_are_kept(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1; echo 'text';")
        self.visitor.open("session_start(); echo 'text'; flush(); $_SESSION['a'] = 2;")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 2})
        code = "session_start(); $_SESSION['a'] = 3; echo 'text'; @ob_flush(); flush(); $_SESSION['a'] = 4;"
        for _ in range(5):
            self.visitor.open(code)
            self.assertEqual(self.visitor.show("$_SESSION"), {"a": 4})

    def test_first_value_before_output_creates_the_session(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1; echo str_repeat('text', 5000);")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    def test_notice_does_not_lose_the_session(self):
        self.visitor.open("ini_set('display_errors', '1'); session_start(); $_SESSION['a'] = 1; echo $missing;")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    def test_page_without_a_body_is_kept(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1; header('Location: /elsewhere'); exit;", 302)
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    def test_page_in_an_output_handler_is_kept(self):
        self.visitor.open("ob_start(fn ($text) => strrev($text)); session_start(); $_SESSION['a'] = 1; echo 'abc';")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    def test_head_request_is_kept(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1; echo 'text';", method="HEAD")
        self.visitor.open("session_start(); $_SESSION['a']++; echo 'text'; flush();", method="HEAD")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 2})

    def test_failing_page_is_kept(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        for code in ["http_response_code(500); echo 'sorry';", "ini_set('display_errors', '0'); missing();"]:
            self.visitor.open(f"session_start(); $_SESSION['a']++; {code}", 500)
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 3})

    def test_shutdown_functions_of_the_site_can_write(self):
        self.visitor.open("register_shutdown_function(function () { $_SESSION['a'] = 1; }); session_start();")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    def test_status_that_a_shutdown_function_sets(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        code = "register_shutdown_function(fn () => http_response_code(500)); session_start(); $_SESSION['a'] = 2;"
        self.visitor.open(code, 500)
        self.visitor.open("ob_start(function ($text) { http_response_code(500); return $text; });"
                          "session_start(); $_SESSION['b'] = 2; echo 'text';", 500)  # fmt: skip
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 2, "b": 2})

    # The cookie and the id

    def test_only_cookies_of_the_session_are_removed(self):
        code = "setcookie('before', '1'); session_start(); setcookie('after', '2'); $_SESSION['a'] = 1; session_regenerate_id();"
        response = self.visitor.open(code)
        names = [line.split("=")[0] for line in response.headers.get_all("Set-Cookie")]
        self.assertEqual(sorted(names), ["after", "before", "id"])
        response = self.visitor.open("session_start(); setcookie(session_name(), '', 1); setcookie('x', '1');")
        self.assertEqual([line.split("=")[0] for line in response.headers.get_all("Set-Cookie")], ["x"])

    def test_cookie_of_the_session_is_there_before_it_starts(self):
        code = "echo json_encode($_COOKIE[session_name()] ?? null);"
        self.assertIsNone(json.loads(self.visitor.open(code).text))
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        shown = json.loads(self.visitor.open(code).text)
        if self.options["is_exchange"]:
            self.assertEqual(shown, self.visitor.show("session_id()"))
        else:
            self.assertRegex(shown, "^[0-9a-f]{32}$", "a placeholder: the header is not believed")
        self.assertEqual(self.visitor.show("$_COOKIE[session_name()] === session_id()"), True)
        self.assertEqual(self.visitor.show("SID"), "")

    def test_ids_have_the_alphabet_of_php(self):
        for _ in range(20):
            visitor = Visitor(self.php)
            first = visitor.show("[session_id(), $_SESSION['a'] = 1][0]")
            self.assertRegex(first, SHOWN_ID)
            self.assertEqual(visitor.show("session_id()"), first)

    def test_leftover_cookie_opens_nothing(self):
        self.visitor.jar["PHPSESSID"] = "a" * 32
        self.assertNotEqual(self.visitor.show("session_id()"), "a" * 32)
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        shown = self.visitor.show("session_id()")
        self.assertNotEqual(shown, "a" * 32)
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    def test_id_is_kept_if_the_site_asks_for_it(self):
        first = json.loads(self.visitor.open("session_start(); echo json_encode(Cloakroom\\id());").text)
        self.assertEqual(self.visitor.show("session_id()"), first)

    # Regenerating and destroying

    def test_regenerating_keeps_values_and_shows_the_next_id(self):
        for delete in ["true", "false"]:
            visitor = Visitor(self.php)
            before = visitor.show("[session_id(), $_SESSION['a'] = 1][0]")
            for _ in range(3):
                old = visitor.copy()
                after = visitor.show(f"[session_regenerate_id({delete}), session_id(), $_SESSION['b'] = 2][1]")
                self.assertNotEqual(after, before)
                self.assertEqual(visitor.show("[session_id(), $_SESSION]"), [after, {"a": 1, "b": 2}])
                self.assertEqual(old.show("$_SESSION"), [])
                before = after

    def test_regenerating_a_new_session_keeps_its_id(self):
        first = self.visitor.show("[session_regenerate_id(true), session_id(), $_SESSION['a'] = 1][1]")
        self.assertEqual(self.visitor.show("[session_id(), $_SESSION]"), [first, {"a": 1}])

    def test_regenerating_twice_is_one_rotation(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        shown = self.visitor.show("[session_regenerate_id(), session_regenerate_id(true), session_id()][2]")
        self.assertEqual(self.visitor.show("session_id()"), shown)

    def test_destroy_and_start_end_the_session(self):
        before = self.visitor.show("[session_id(), $_SESSION['a'] = 1][0]")
        old = self.visitor.copy()
        code = "session_start(); session_destroy(); session_start(); $_SESSION['b'] = 2; echo json_encode($_SESSION);"
        self.assertEqual(json.loads(self.visitor.open(code).text), {"b": 2})
        self.assertEqual(self.visitor.show("$_SESSION"), {"b": 2})
        self.assertNotEqual(self.visitor.show("session_id()"), before)
        self.assertEqual(old.show("$_SESSION"), [])

    def test_log_out_of_the_manual(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1; Cloakroom\\login('ada');")
        self.visitor.open("session_start(); $_SESSION = []; setcookie(session_name(), '', time() - 42000, '/'); session_destroy();")
        self.assertEqual(self.php.program.principals(), [])
        self.assertEqual(self.visitor.jar, {})

    def test_destroying_nothing_writes_nothing(self):
        self.visitor.open("session_start(); session_destroy();")
        self.assertEqual(self.visitor.jar, {})
        self.visitor.open("session_start(); session_regenerate_id(true);")
        self.assertEqual(self.visitor.jar, {})

    def test_session_create_id_changes_nothing(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        shown = self.visitor.show("[session_create_id('x-'), session_id()]")
        self.assertTrue(shown[0].startswith("x-"))
        self.assertEqual(self.visitor.show("[session_id(), $_SESSION]"), [shown[1], {"a": 1}])

    # Opening and closing

    def test_session_closed_and_started_again(self):
        code = """
            session_start(); $_SESSION['a'] = 1; session_write_close(); $_SESSION['lost'] = 1;
            for ($i = 0; $i < 5; $i++) { session_start(); $_SESSION['a']++; session_commit(); }
            session_start(['read_and_close' => true]); $_SESSION['a'] = 100;
            session_start(); $_SESSION['a'] = 200; session_abort();
            session_start(); $_SESSION['b'] = 1; session_reset(); echo json_encode($_SESSION);
        """
        self.assertEqual(json.loads(self.visitor.open(f"ob_start(); {code}").text), {"a": 6})
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 6})

    def test_unset_session(self):
        self.visitor.open("session_start(); $_SESSION['a'] = $_SESSION['b'] = 1;")
        self.visitor.open("session_start(); unset($_SESSION);")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1, "b": 1})
        self.visitor.open("session_start(); unset($_SESSION['b']);")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})
        self.visitor.open("session_start(); session_unset();")
        self.assertEqual(self.visitor.show("$_SESSION"), [])

    def test_long_request_sees_parallel_changes(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        code = """
            for ($i = 0; $i < 60; $i++) {
                session_start(); $_SESSION['progress'] = $i; $stop = $_SESSION['stop'] ?? false; session_write_close();
                if ($stop) { exit('stopped'); }
                usleep(100000);
            }
        """
        answers = []
        reader = self.visitor.copy()
        long = threading.Thread(target=lambda: answers.append(reader.open(f"ob_start(); {code}").text))
        long.start()
        time.sleep(2.5)
        self.assertGreater(self.visitor.show("$_SESSION['progress'] ?? 0"), 5)
        self.visitor.open("session_start(); $_SESSION['stop'] = true;")
        long.join()
        self.assertEqual(answers, ["stopped"])

    def test_untouched_page_makes_no_call(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        before = self.php.program.api_calls()
        self.visitor.open("echo 'text';")
        self.assertEqual(self.php.program.api_calls(), before)

    # Values

    def check(self, expression, is_plain, setup=""):
        """Stores a value between others, and checks that it comes back identical."""
        visitor = Visitor(self.php)
        code = "function same($a, $b) { return var_export($a, true) === var_export($b, true) && serialize($a) === serialize($b); }"
        visitor.open(f"{code}{setup} session_start(); $_SESSION['a'] = [1, [2]]; $_SESSION['v'] = {expression}; $_SESSION['z'] = [1];")
        [stored] = visitor.stored()
        is_tagged = isinstance(stored["v"], dict) and list(stored["v"]) == ["$cloakroom"]
        self.assertNotEqual(is_tagged, is_plain, f"{expression}: {stored['v']}")
        before = self.php.program.service("GET", "").json["sessions"][0]["version"]
        for _ in range(2):
            shown = visitor.open(f"{code}{setup} session_start(); echo json_encode(same($_SESSION['v'], {expression}));")
            self.assertEqual(shown.text, "true", f"{expression} {self.logged()}")
        self.assertEqual(self.php.program.service("GET", "").json["sessions"][0]["version"], before, "reading has written")
        self.tearDown()

    def test_json_values(self):
        for expression in [
            "PHP_INT_MAX", "PHP_INT_MIN", "1.0", "-0.1", "1e300", "0.1 + 0.2", "true", "null", "''", "'5'", "[]", "[[]]",
            "[5 => 1, 3 => 2]", "['5' => 1, 'x' => [null]]", "[1 => 'a', 0 => 'b']", "['' => 1]", "[' t' => [1]]",
            '"Zo\\u{eb} \\u{1f600}"', '"\\0\\x7f\\n\\r\\\\\\"\'/<>"', "['b' => 1, 'a' => ['d' => 1, 'c' => 2]]",
        ]:  # fmt: skip
            self.check(expression, is_plain=True)

    def test_values_that_json_cannot_hold(self):
        setup = """
            class P { private $own = [1]; protected $more = '\\"}{;'; public $all; public ?P $self = null; }
            enum Suit: string { case Hearts = 'H'; }
        """
        for expression in [
            "new P", "[new P, new stdClass]", "Suit::Hearts", "[Suit::Hearts, 'x' => Suit::Hearts]", "INF", "[NAN]",
            '"\\xff"', '["\\xff" => 1]', "new DateTimeImmutable('2026-01-01T00:00:00+00:00')", "['$cloakroom' => ['php' => 'x']]",
            "(object) ['a' => (object) []]", "new ArrayObject([1, 2])",
            "json_decode(str_repeat('[', 300) . str_repeat(']', 300), true)",
        ]:  # fmt: skip
            self.check(expression, is_plain=False, setup=setup)

    def test_values_that_refer_to_themselves(self):
        self.visitor.open("""
            session_start();
            $one = new stdClass; $one->self = $one; $one->list = [1, 2, ['a' => $one]];
            $array = ['x' => 1, 'y' => 2]; $array['y'] = &$array['x'];
            $_SESSION = ['a' => [1, ['b' => 2]], 'o' => [$one, $one], 'p' => $array, 'q' => clone $one, 'z' => 'text'];
        """)
        for _ in range(2):
            shown = self.visitor.open("""
                session_start();
                [$one, $two] = $_SESSION['o'];
                $_SESSION['p']['y']++;
                echo json_encode([$one === $two, $one->self === $one, $one->list[2]['a'] === $one,
                    $_SESSION['p']['x'] === $_SESSION['p']['y'], $_SESSION['q']->list === [1, 2, ['a' => $_SESSION['q']->self]]]);
            """)
            self.assertEqual(shown.text, "[true,true,true,true,true]", self.logged())

    def test_leftover_reference_stays_json(self):
        self.visitor.open("session_start(); $_SESSION['a'] = [1, 2]; foreach ($_SESSION['a'] as &$one) { $one++; }")
        self.assertEqual(self.visitor.stored(), [{"a": [2, 3]}])

    def test_closure_loses_its_own_key_only(self):
        code = "session_start(); $_SESSION['a'] = 1; $_SESSION['closure'] = fn () => 1; $_SESSION['z'] = 2;"
        self.visitor.open(f"ini_set('display_errors', '0'); {code} echo 'text';", expects=None)
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1, "z": 2})
        self.assertIn("$_SESSION['closure'] cannot be stored", self.logged())
        self.visitor.open(f"ini_set('display_errors', '0'); ob_start(); {code} $_SESSION['z'] = 3; session_write_close();", 500)
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1, "z": 3})

    def test_keys_that_cloakroom_does_not_take(self):
        code = """
            session_start();
            $_SESSION = ['' => 1, str_repeat('k', 300) => new ArrayObject([1]), "\\xff" => 'x', 'a|b' => [1], 5 => 'five',
                'php::' . sha1('x') => 1, 'php:a' => [2], ':x' => 3, 'a' => (object) ['b' => (object) []]];
        """
        self.visitor.open(code)
        shown = self.visitor.open("""
            session_start();
            ksort($_SESSION);
            echo json_encode([$_SESSION[''], $_SESSION[str_repeat('k', 300)][0], $_SESSION["\\xff"], $_SESSION['a|b'],
                $_SESSION[5], $_SESSION['php::' . sha1('x')], $_SESSION['php:a'], $_SESSION[':x'],
                $_SESSION['a'] == (object) ['b' => (object) []], count($_SESSION)]);
            unset($_SESSION[''], $_SESSION["\\xff"]);
            $_SESSION['php:a'] = 4;
        """)
        self.assertEqual(json.loads(shown.text), [1, 1, "x", [1], "five", 1, [2], 3, True, 9], self.logged())
        self.assertEqual(self.visitor.show("[count($_SESSION), $_SESSION['php:a']]"), [7, 4])

    def test_order_of_members_is_kept(self):
        self.visitor.open("session_start(); $_SESSION['crumbs'] = ['a' => 1, 'b' => 2, 'c' => 3];")
        self.visitor.open("session_start(); unset($_SESSION['crumbs']['a']); $_SESSION['crumbs']['a'] = 1;")
        self.assertEqual(self.visitor.show("array_keys($_SESSION['crumbs'])"), ["b", "c", "a"])
        self.visitor.open("session_start(); $_SESSION['crumbs'] = ['new' => 4] + $_SESSION['crumbs'];")
        self.assertEqual(self.visitor.show("array_keys($_SESSION['crumbs'])"), ["new", "b", "c", "a"])

    def test_objects_with_the_members_of_a_list(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        [one] = self.php.program.service("GET", "").json["sessions"]
        values = {"empty": {}, "numbers": {"0": "a", "1": "b"}, "nested": {"n": {"0": "a"}}}
        self.assertEqual(self.patch(one["id"], {"set": values}), 200)
        self.visitor.open("session_start(); $_SESSION['b'] = 1;")
        self.assertEqual({**self.visitor.stored()[0], "a": 0, "b": 0}, {**values, "a": 0, "b": 0})
        self.visitor.open("""
            session_start();
            $_SESSION['empty'][] = 'x'; $_SESSION['numbers'][] = 'c'; $_SESSION['nested']['n'] = [1 => 'b', 3 => 'c'];
        """)
        found = self.visitor.show("$_SESSION")
        self.assertEqual(found["empty"], ["x"])
        self.assertEqual(found["numbers"], ["a", "b", "c"])
        self.assertEqual(found["nested"], {"n": {"1": "b", "3": "c"}})
        [stored] = self.visitor.stored()
        self.assertEqual(stored["numbers"], {"0": "a", "1": "b", "2": "c"})

    def test_objects_stay_objects(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        [one] = self.php.program.service("GET", "").json["sessions"]
        numbers = {"0": {"0": "a"}, "1": {}, "list": [{"0": "a", "e": {}}, []]}
        values = {
            "map": {"0": "a"}, "deep": numbers, "gone": {"0": "a"}, "null": {"0": "a", "1": {"0": None}},
            "new": {"x": 1}, "sorted": {"1": "b", "0": "a"}, "nul": {"\0a": 2, "": {"0": 1}}, "empty": {"e": {}},
        }  # fmt: skip
        self.assertEqual(self.patch(one["id"], {"set": values}), 200)
        self.visitor.open("""
            session_start();
            $_SESSION['map'][] = 'b';
            $_SESSION['deep'][0][] = 'b'; $_SESSION['deep']['list'][0][] = 'b'; $_SESSION['deep']['list'][] = ['c'];
            unset($_SESSION['gone'][0]);
            $_SESSION['null'][2] = null;
            $_SESSION['new'] = ['x', 'y'];
            sort($_SESSION['sorted']);
            $_SESSION['nul']['b'] = 1;
            $_SESSION['empty']['f'] = 1;
        """)
        [stored] = self.visitor.stored()
        self.assertEqual(stored, {
            "a": 1, "map": {"0": "a", "1": "b"},
            "deep": {"0": {"0": "a", "1": "b"}, "1": {}, "list": [{"0": "a", "e": {}, "1": "b"}, [], ["c"]]},
            "gone": {}, "null": {"0": "a", "1": {"0": None}, "2": None}, "new": ["x", "y"],
            "sorted": {"0": "a", "1": "b"}, "nul": {"\0a": 2, "": {"0": 1}, "b": 1}, "empty": {"e": {}, "f": 1},
        }, self.logged())  # fmt: skip

    def test_arrays_that_look_like_a_tag(self):
        foreign = {"$cloakroom": {"pickle": "gAROLg=="}}
        self.visitor.open("session_start(); $_SESSION['a'] = ['$cloakroom' => ['php' => 'x'], 'b' => [1]];")
        [one] = self.php.program.service("GET", "").json["sessions"]
        inner = {"$cloakroom": {"php": "x"}, "b": [1]}
        self.assertEqual(self.visitor.stored(), [{"a": {"$cloakroom": {"json": inner}}}])
        more = {"foreign": foreign, "changed": foreign, "n": {"$cloakroom": {"json": {"$cloakroom": 1, "m": {"0": "a"}}}}}
        self.assertEqual(self.patch(one["id"], {"set": more}), 200)
        self.assertEqual(self.visitor.show("[$_SESSION['a'], $_SESSION['n']['$cloakroom']]"), [inner, 1])
        self.visitor.open("""
            session_start(); $_SESSION['a']['b'][] = 2; $_SESSION['n']['m'][] = 'b'; $_SESSION['changed']['x'] = 1;
        """)
        self.assertEqual(self.visitor.stored(), [{
            "a": {"$cloakroom": {"json": {**inner, "b": [1, 2]}}}, "foreign": foreign,
            "changed": {"$cloakroom": {"json": {**foreign, "x": 1}}},
            "n": {"$cloakroom": {"json": {"$cloakroom": 1, "m": {"0": "a", "1": "b"}}}},
        }])  # fmt: skip
        self.visitor.open("session_start(); unset($_SESSION['a']['$cloakroom']);")
        self.assertEqual(self.visitor.stored()[0]["a"], {"b": [1, 2]})

    def patch(self, id, patch):
        headers = {"Authorization": f"Bearer {kit.SERVICE_TOKEN}"}
        return kit.fetch(self.php.program.api, "PATCH", f"/_sessions/{id}", patch, headers).status

    def test_patch_of_any_size(self):
        for size in [1500, 3000, 60_000, 70_000, 500_000]:
            self.visitor.open(f"session_start(); $_SESSION['a'] = str_repeat('x', {size}); echo 'text';")
            self.assertEqual(self.visitor.show("strlen($_SESSION['a'])"), size)

    def test_value_that_is_too_large_names_key_and_limit(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        for code in ["echo 'text';", "", "session_write_close(); echo 'text';"]:
            self.visitor.open(f"session_start(); $_SESSION['large'] = str_repeat('x', 1100000); {code}", 500)
        self.assertIn('the largest change is "large" with 1100002 bytes', self.logged())
        self.assertIn("the limit is max_bytes of [session]", self.logged())
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    def test_other_serialize_handler(self):
        self.visitor.open("""
            ini_set('session.serialize_handler', 'php'); session_start();
            $one = new stdClass; $_SESSION = ['a' => [1], 'b' => [$one, $one], 'c' => [$one, $one]];
        """)
        shown = self.visitor.open("""
            ini_set('session.serialize_handler', 'php'); session_start();
            echo json_encode([$_SESSION['a'], $_SESSION['b'][0] === $_SESSION['b'][1], $_SESSION['c'][0] === $_SESSION['c'][1]]);
        """)
        self.assertEqual(shown.text, "[[1],true,true]", self.logged())

    def test_malformed_serialization_is_left_alone(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        [one] = self.php.program.service("GET", "").json["sessions"]
        malformed = {"$cloakroom": {"php": "YToxOntpOjA7"}}
        self.assertEqual(self.patch(one["id"], {"set": {"bad": malformed}}), 200)
        self.visitor.open("session_start(); $_SESSION['b'] = count($_SESSION);")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1, "b": 1})
        self.assertEqual(self.visitor.stored()[0]["bad"], malformed)
        self.assertIn("$_SESSION['bad'] is not loaded", self.logged())

    def tag(self, text):
        return {"$cloakroom": {"php": base64.b64encode(text.encode()).decode()}}

    def test_values_that_php_cannot_decode_are_left_alone(self):
        self.visitor.open("session_start(); $_SESSION['a'] = [1];")
        [one] = self.php.program.service("GET", "").json["sessions"]
        values = {
            "enum": self.tag('E:10:"Suit:Spade";'), "throwing": self.tag('O:5:"Money":1:{s:1:"v";i:1;}'),
            "number": self.tag("i:abc;"), "escaped": self.tag('S:3:"\\41";'), "gone": self.tag('O:4:"Gone":1:{s:1:"x";i:1;}'),
        }  # fmt: skip
        self.assertEqual(self.patch(one["id"], {"set": values}), 200)
        code = """
            class Money { function __unserialize(array $d): void { throw new Exception('old format'); } }
            ini_set('display_errors', '1'); session_start();
        """
        for handler in ["", "ini_set('session.serialize_handler', 'php');"]:
            shown = self.visitor.open(f"{handler} {code} echo implode(' ', array_keys($_SESSION));")
            self.assertEqual(sorted(shown.text.split(" ")), ["a", "gone"])
        self.visitor.open(f"{code} $_SESSION['b'] = 1;")
        self.assertEqual(self.visitor.stored(), [{"a": [1], "b": 1, **values}])
        for key in ["enum", "throwing", "number", "escaped"]:
            self.assertIn(f"$_SESSION['{key}'] is not loaded", self.logged())

    def test_session_that_php_cannot_decode_is_not_emptied(self):
        # Succeeds once, so that the client cannot know.
        self.visitor.open("session_start(); $_SESSION['a'] = 1; $_SESSION['user'] = ['name' => 'ada'];")
        [one] = self.php.program.service("GET", "").json["sessions"]
        values = {"a": 1, "user": {"name": "ada"}, "m": self.tag('C:1:"M":1:{x}')}
        self.assertEqual(self.patch(one["id"], {"set": values}), 200)
        for handler in ["", "ini_set('session.serialize_handler', 'php');"]:
            for more in ["", "session_start(); $_SESSION['b'] = 1;"]:
                self.visitor.open(f"""
                    {handler}
                    class M implements Serializable {{
                        static $n = 0; function serialize() {{ return 'x'; }}
                        function __serialize(): array {{ return []; }} function __unserialize(array $a): void {{ }}
                        function unserialize($text) {{ if (self::$n++) {{ throw new Exception('once'); }} }}
                    }}
                    ini_set('display_errors', '1');
                    try {{ session_start(); }} catch (Exception $e) {{ }} echo 'text'; {more}
                """, expects=None)  # fmt: skip
                self.assertEqual(self.visitor.stored(), [values], self.logged())
                self.assertIn("PHP cannot decode the session", self.logged())

    def test_format_that_the_client_does_not_write(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        self.visitor.open("ini_set('session.serialize_handler', 'php_binary'); session_start();", 500)
        self.assertIn("session.serialize_handler = php_binary is not supported", self.logged())
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    # Two sessions of PHP

    def test_two_names_are_two_sessions(self):
        self.visitor.open("""
            ob_start();
            session_start(); $_SESSION['token'] = 'main'; session_write_close();
            session_name('other'); session_id(''); session_start(); $_SESSION['token'] = 'other'; $_SESSION[''] = new ArrayObject();
        """)
        other = "session_name('other'); session_start();"
        self.assertEqual(self.visitor.show("$_SESSION"), {"token": "main"})
        self.assertEqual(json.loads(self.visitor.open(f"{other} echo json_encode(count($_SESSION));").text), 2)
        self.visitor.open(f"{other} session_destroy(); session_start(); $_SESSION['b'] = 1;")
        self.assertEqual(self.visitor.show("$_SESSION"), {"token": "main"})
        self.assertEqual(json.loads(self.visitor.open(f"{other} echo json_encode($_SESSION);").text), {"b": 1})
        self.visitor.open("session_start(); session_destroy();")
        self.assertEqual(json.loads(self.visitor.open(f"{other} echo json_encode($_SESSION);").text), [])

    def test_destroying_another_name_logs_out(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1; Cloakroom\\login('ada');")
        self.visitor.open("session_name('other'); session_start(); $_SESSION['b'] = 1;")
        self.visitor.open("session_name('other'); session_start(); session_destroy();")
        self.assertEqual(self.php.program.principals(), [None])
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})

    # Log-in

    def test_principal(self):
        self.assertEqual(self.visitor.show("Cloakroom\\principal()"), None)
        self.assertEqual(self.visitor.show("[Cloakroom\\login('Zo\u00eb'), Cloakroom\\principal()][1]"), "Zo\u00eb")
        self.assertEqual(self.visitor.show("Cloakroom\\principal()"), "Zo\u00eb")
        self.assertEqual(self.visitor.show("[$_SESSION['a'] = 1, Cloakroom\\logout(), Cloakroom\\principal()][2]"), None)
        self.assertEqual(self.visitor.show("[Cloakroom\\principal(), $_SESSION]"), [None, {"a": 1}])

    def test_name_of_a_user_that_is_not_valid(self):
        code = "session_start(); try { Cloakroom\\login(\"\\xff\"); } catch (Cloakroom\\SessionError $error) { echo 'refused'; }"
        self.assertEqual(self.visitor.open(code).text, "refused")
        response = self.visitor.open("session_start(); $_SESSION['a'] = 1; Cloakroom\\login(' ada');", expects=None)
        # By header it is Cloakroom that refuses it.
        self.assertEqual(response.status, 502 if self.options["is_exchange"] else 500)

    def test_headers_are_read_before_the_site_changes_them(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1;")
        self.visitor.open("$_SERVER = []; session_start(); $_SESSION['a']++;")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 2})

    def test_log_in_of_another_user_writes_what_has_changed_whole(self):
        self.visitor.open("""
            ob_start(); session_start(); $_SESSION = ['user' => ['n' => 'ada', 'tz' => 'UTC'], 'roles' => ['user'], 'old' => 1,
                'kept' => 2, 'php' => new ArrayObject([1])];
            Cloakroom\\login('ada'); session_write_close();
            session_name('other'); session_id(''); session_start(); $_SESSION['secret'] = 1;
        """)
        [one] = self.php.program.service("GET", "").json["sessions"]
        self.assertEqual(self.patch(one["id"], {"set": {"hidden": self.tag("i:abc;")}}), 200)
        self.visitor.open("""
            session_start(); $_SESSION['user']['n'] = 'bob'; $_SESSION['roles'][] = 'admin'; unset($_SESSION['old']);
            Cloakroom\\login('bob');
        """)
        # What ada has left behind is not bob's.
        self.assertEqual(self.visitor.stored(), [{"user": {"n": "bob", "tz": "UTC"}, "roles": ["user", "admin"]}])
        self.assertEqual(self.visitor.show("Cloakroom\\principal()"), "bob")

    def test_log_in_without_a_session_of_php_drops_the_values(self):
        self.visitor.open("session_start(); $_SESSION['secret'] = 1; Cloakroom\\login('ada');")
        self.visitor.open("Cloakroom\\principal(); Cloakroom\\login('bob');")
        self.assertEqual(self.visitor.show("[$_SESSION, Cloakroom\\principal()]"), [[], "bob"])

    def test_log_in_of_the_same_user_keeps_the_values(self):
        self.visitor.open("session_start(); $_SESSION['a'] = 1; Cloakroom\\login('ada');")
        self.visitor.open("session_start(); $_SESSION['b'] = [1]; Cloakroom\\login('ada');")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1, "b": [1]})

    # Errors

    def test_application_with_its_own_handler(self):
        own = """
            class Own implements SessionHandlerInterface {
                function open($path, $name): bool { return true; } function close(): bool { return true; }
                function read($id): string { return (string) @file_get_contents(__DIR__ . "/../own-$id"); }
                function write($id, $data): bool { return (bool) file_put_contents(__DIR__ . "/../own-$id", $data); }
                function destroy($id): bool { return true; } #[ReturnTypeWillChange] function gc($max) { return 0; }
            }
            session_set_save_handler(new Own, true);
        """
        for replace in [own, "session_module_name('files');", "ini_set('session.save_handler', 'files');"]:
            visitor = Visitor(self.php)
            code = f"{replace} session_start(); $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; echo $_SESSION['n'];"
            self.assertEqual([visitor.open(code).text for _ in range(3)], ["1", "2", "3"])
            self.assertEqual(list(visitor.jar), ["PHPSESSID"])
            self.assertIn('hold_cookies = ["PHPSESSID"]', self.logged())
        self.assertEqual(self.logged().count("hold_cookies"), 3, "once a visitor")
        # A visitor with a session in Cloakroom: its id must not become the id of the other session.
        visitor = Visitor(self.php)
        shown = visitor.show("[session_id(), $_SESSION['a'] = 1][0]")
        code = f"{own} ob_start(); session_start(); $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; echo $_SESSION['n'];"
        self.assertEqual([visitor.open(code).text for _ in range(3)], ["1", "2", "3"])
        self.assertNotEqual(visitor.jar["PHPSESSID"], shown)
        self.assertNotEqual(visitor.jar["PHPSESSID"].replace(",", "_"), shown.replace(",", "_"))

    def test_request_from_elsewhere(self):
        untouched, touched = self.php.page("echo 'text';"), self.php.page("session_start();")
        has_secret = self.php.is_exchange
        self.assertEqual(kit.fetch(self.php.port, "GET", untouched).status, 403 if has_secret else 200)
        self.assertEqual(kit.fetch(self.php.port, "GET", touched).status, 403 if has_secret else 500)
        self.assertIn("did not come through Cloakroom", self.logged())

    def test_error_handler_of_the_site_sees_no_warning(self):
        code = "set_error_handler(function ($n, $text) { throw new ErrorException($text); });"
        self.visitor.open(f"{code} session_start(); $_SESSION['a'] = 1; session_regenerate_id(true); echo 'text';")
        self.assertEqual(self.visitor.show("$_SESSION"), {"a": 1})


def configurations():
    """Returns the classes of tests, one for each configuration."""
    for has_ini in [False, True] if HAS_INI else [False]:
        for buffer in [0, 4096]:
            for is_exchange in [False, True]:
                name = "Pages" + ("DebianIni" if has_ini else "") + f"Buffer{buffer}" + ("Headers" if is_exchange else "Api")
                options = {"has_ini": has_ini, "buffer": buffer, "is_exchange": is_exchange}
                yield name, type(name, (Pages, unittest.TestCase), {"options": options})
    if find_fpm():
        for is_exchange in [False, True]:
            name = "PagesFpm" + ("Headers" if is_exchange else "Api")
            options = {"buffer": 4096, "is_exchange": is_exchange}
            yield name, type(name, (Pages, unittest.TestCase), {"options": options, "server": Fpm})
    if find_apache():
        for is_exchange in [False, True]:
            name = "PagesApache" + ("Headers" if is_exchange else "Api")
            options = {"buffer": 0, "is_exchange": is_exchange}
            yield name, type(name, (Pages, unittest.TestCase), {"options": options, "server": Apache})


globals().update(configurations())


class Trust(unittest.TestCase):
    """Which requests are believed."""

    def vectors(self):
        text = (ROOT / "docs/reference/headers.md").read_text()
        return json.loads(re.search(r"Test vectors:\n\n```json\n(.*?)```", text, re.DOTALL)[1])

    @unittest.skipUnless(shutil.which("faketime") or os.environ.get("TESTS_NEED_TOOLS"), "needs faketime")
    def test_vectors_of_the_documentation(self):
        vectors = self.vectors()
        self.assertEqual(len(vectors), 5)
        for vector in vectors:
            with tempfile.NamedTemporaryFile("w", suffix=".secret") as secret:
                secret.write(vector["secret"] + "\n")
                secret.flush()
                settings = {"URL": vector["headers"]["x-session-url"], "SECRETS": f"/dev/null/{secret.name}:{secret.name}"}
                settings["SECRETS"] = f"{secret.name}:{secret.name}"
                with Php(wrapper=["faketime", "2027-01-15 08:00:00 UTC"], **settings) as php:
                    page = php.page("echo 'text';")
                    headers = {**vector["headers"], "x-session-proof": vector["proof"]}
                    self.assertEqual(kit.fetch(php.port, "GET", page, headers=headers).status, 200, vector)
                    for name in headers:
                        wrong = {**headers, name: headers[name][:-1] + "x"}
                        self.assertEqual(kit.fetch(php.port, "GET", page, headers=wrong).status, 403, name)
                        doubled = {**headers, name: [headers[name], headers[name]]}
                        self.assertEqual(kit.fetch(php.port, "GET", page, headers=doubled).status, 403, name)
                        missing = {one: value for one, value in headers.items() if one != name}
                        self.assertEqual(kit.fetch(php.port, "GET", page, headers=missing).status, 403, name)

    def test_either_of_two_secrets(self):
        with tempfile.TemporaryDirectory() as directory:
            new = kit.secret_file(directory, "the-next-secret-of-the-tests-0123456789")
            now = kit.secret_file(directory, kit.CLIENT_SECRET)
            with Php(is_exchange=True, SECRETS=f"{new}:{now}") as php:
                visitor = Visitor(php)
                visitor.open("session_start(); $_SESSION['a'] = 1;")
                self.assertEqual(visitor.show("$_SESSION"), {"a": 1})
            with Php(is_exchange=True, SECRETS=new) as php:
                Visitor(php).open("session_start();", 403)

    def test_unusable_secret_is_an_error(self):
        with tempfile.NamedTemporaryFile("w") as short:
            short.write("short")
            short.flush()
            for path, reason in [
                (short.name, "has less than 32 bytes (CLOAKROOM_CLIENT_SECRETS)"),
                ("/nowhere", "cannot be read (CLOAKROOM_CLIENT_SECRETS): No such file or directory"),
            ]:
                with Php(is_exchange=True, SECRETS=path) as php:
                    Visitor(php).open("session_start();", 500)
                    self.assertEqual(kit.fetch(php.port, "GET", php.page("")).status, 500, "without a proof, too")
                    lines = [line for line in php.logged().splitlines() if "Cloakroom: " in line]
                    self.assertEqual(len(lines), 2, lines)
                    for line in lines:
                        self.assertIn(f"the client secret in {path} {reason}", line)

    def test_header_exchange_without_a_secret_is_reported(self):
        with Php(is_exchange=True, SECRETS="") as php:
            visitor = Visitor(php)
            for _ in range(2):
                visitor.open("session_start(); $_SESSION['a'] = 1;")
            text = "header exchange is on, but the client has no secret: X-Session-Data is not used; set CLOAKROOM_CLIENT_SECRETS"
            self.assertEqual(php.logged().count(text), 1)

    def test_id_comes_from_the_api_without_trust(self):
        def respond(method, _, found={}):
            return answer(200, json.dumps({"version": 1, "principal": "ada", "values": {}, **found}))

        names = {"X-Session-Id": "id", "X-Session-Next-Id": "next_id"}
        for (name, member), call in itertools.product(names.items(), ["session_id()", "Cloakroom\\id()"]):
            found = {"id": None, member: "A" * 22}
            api = Failing(lambda method, count, found=found: respond(method, count, found))
            with Php(URL=api.url) as php:
                headers = {"X-Session-Url": api.url, "X-Session-Token": "x", "X-Session-Principal": "eve", name: "V" * 22}
                for code in ["session_start();", "echo $_COOKIE[session_name()] ?? '';session_start();"]:
                    response = kit.fetch(php.port, "GET", php.page(f"ob_start(); {code} echo {call};"), headers=headers)
                    self.assertTrue(response.text.endswith("A" * 22), response.text)
                    self.assertNotIn("V" * 22, response.text)
                before = len(api.seen)
                kit.fetch(php.port, "GET", php.page("session_start(); echo session_id();"), headers=headers)
                self.assertEqual(len(api.seen), before + 1, "one call per page")
                page = php.page("echo json_encode(Cloakroom\\principal());")
                expected = "ada" if member == "id" else None
                self.assertEqual(kit.fetch(php.port, "GET", page, headers=headers).json, expected)
            api.shutdown()
            api.server_close()

    def test_made_up_token_gets_no_id(self):
        with Php() as php:
            headers = {"X-Session-Url": php.program.url, "X-Session-Token": "x"}
            for name in ["X-Session-Id", "X-Session-Next-Id"]:
                page = php.page("session_start(); echo session_id();")
                response = kit.fetch(php.port, "GET", page, headers={**headers, name: "V" * 22})
                self.assertEqual(response.status, 403)
                self.assertNotIn("V" * 22, response.text)

    def test_network_is_trusted_if_configured(self):
        with Php(is_exchange=True, SECRETS="", TRUST="network") as php:
            visitor = Visitor(php)
            before = php.program.api_calls()
            visitor.open("session_start(); $_SESSION['a'] = 1;")
            self.assertEqual(visitor.show("$_SESSION"), {"a": 1})
            self.assertEqual(php.program.api_calls(), before)

    def test_other_api_is_refused(self):
        with Php(URL="http://127.0.0.1:9/_session") as php:
            Visitor(php).open("echo 'text';", 403)
            self.assertIn("X-Session-Url is not the URL of CLOAKROOM_CLIENT_URL", php.logged())


class Settings(unittest.TestCase):
    """Settings of the client and of PHP."""

    def test_auto_start_is_refused(self):
        with Php(ini=["session.auto_start=1"]) as php:
            Visitor(php).open("echo 'text';", 500)
            self.assertIn("set session.auto_start = 0 in php.ini", php.logged())

    def test_stock_sessions_in_development(self):
        with Php(FALLBACK="stock") as php:
            direct = kit.Visitor(php.port)
            page = php.page("session_start(); $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; echo $_SESSION['n'];")
            self.assertEqual([direct.send("GET", page).text for _ in range(3)], ["1", "2", "3"])
            self.assertEqual(list(direct.jar), ["PHPSESSID"])
            self.assertEqual(php.logged().count("PHP's own sessions are used"), 1)
            log_in = php.page("session_start(); Cloakroom\\login('ada'); $_SESSION['who'] = Cloakroom\\principal(); echo $_SESSION['who'];")
            who = php.page("session_start(); echo json_encode([Cloakroom\\id() === session_id(), Cloakroom\\principal()]);")
            self.assertEqual(direct.send("GET", log_in).text, "ada")
            self.assertEqual(direct.send("GET", who).json, [True, "ada"])
            visitor = Visitor(php)
            visitor.open("session_start(); $_SESSION['a'] = 1;")
            self.assertEqual(list(visitor.jar), ["id"])

    def test_stock_sessions_with_a_secret(self):
        with Php(is_exchange=True, FALLBACK="stock") as php:
            page = php.page("session_start(); echo session_module_name();")
            for headers, found in [
                ({}, (200, "files")),
                ({"x-session-proof": kit.proof({})}, (200, "files")),  # of a route without sessions
                ({"x-session-proof": kit.proof({}, "another-secret-of-at-least-32-bytes")}, (403, "Forbidden\n")),
                ({"x-session-id": "x"}, (403, "Forbidden\n")),
                ({"x-session-id": "x", "x-session-proof": kit.proof({})}, (403, "Forbidden\n")),
                ({"x-session-token": "x"}, (403, "Forbidden\n")),
            ]:
                response = kit.fetch(php.port, "GET", page, headers=headers)
                self.assertEqual((response.status, response.text), found, headers)
            self.assertEqual(Visitor(php).open("session_start(); echo session_module_name();").text, "user")

    def test_settings_of_php_ini(self):
        [api] = kit.free_ports(1)
        with Php(URL=f"http://127.0.0.1:{api}/_session") as other, tempfile.TemporaryDirectory() as directory:
            ini = pathlib.Path(directory) / "php.ini"
            ini.write_text(f"cloakroom.url = {other.program.url}\n")
            page, [port] = other.page("session_start(); $_SESSION['a'] = 1; echo Cloakroom\\Client::setting('URL');"), kit.free_ports(1)
            environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOAKROOM_")}
            command = ["php", "-c", ini, "-d", f"auto_prepend_file={CLIENT}", "-S", f"127.0.0.1:{port}", "-t", other.pages]
            with kit.process(command, port, env=environment, stderr=subprocess.DEVNULL):
                headers = {"X-Session-Url": other.program.url, "X-Session-Token": "x", "X-Session-Id": "A" * 22}
                self.assertEqual(kit.fetch(port, "GET", page, headers=headers).status, 403, "the API refuses the token")
                headers["X-Session-Url"] = "http://127.0.0.1:8081/_session"
                self.assertEqual(kit.fetch(port, "GET", page, headers=headers).status, 403)

    def test_scripts_keep_the_sessions_of_php(self):
        code = "session_start(); $_SESSION['a'] = 1; echo session_module_name();"
        found = subprocess.run(
            ["php", "-n", "-d", f"auto_prepend_file={CLIENT}", "-r", f"require '{CLIENT}'; {code}"],
            capture_output=True, text=True, timeout=kit.PATIENCE, check=True,
        )  # fmt: skip
        self.assertEqual(found.stdout, "files")

    def test_principal_in_the_session(self):
        for is_exchange in [False, True]:
            with Php(is_exchange=is_exchange, PRINCIPAL="user.name") as php:
                visitor = Visitor(php)
                visitor.open("session_start(); $_SESSION['basket'] = [1];")
                planted = visitor.copy()
                visitor.open("session_start(); $_SESSION['user'] = ['name' => 'ada']; session_regenerate_id(true);")
                self.assertEqual(php.program.principals(), ["ada"])
                self.assertEqual(planted.show("$_SESSION"), [])
                token = dict(visitor.jar)
                visitor.open("session_start(); $_SESSION['user']['mail'] = 'ada@example.org';")
                self.assertEqual(visitor.jar, token, "another change is no log-in")
                visitor.open("session_start(); $_SESSION['user']['name'] = 'bob';")
                self.assertEqual(php.program.principals(), ["bob"])
                visitor.open("session_start(); unset($_SESSION['user']);")
                self.assertEqual(php.program.principals(), [None])
                visitor.open("""
                    class User { private $name = 'eve'; }
                    session_start(); $_SESSION['user'] = new User; session_write_close(); session_start();
                """)
                self.assertEqual(php.program.principals(), ["eve"])
                token = dict(visitor.jar)
                visitor.open("class User { private $name; } session_start(); $_SESSION['b'] = 1;")
                self.assertEqual(visitor.jar, token)
                visitor.open("session_start(); session_destroy(); session_start(); $_SESSION['user'] = ['name' => 'ada'];")
                self.assertEqual(php.program.principals(), ["ada"])
                visitor.open("session_start(); session_destroy();")
                self.assertEqual(php.program.principals(), [])
                visitor.open("""
                    session_start(); $_SESSION['user'] = ['name' => 'ada']; session_write_close();
                    session_name('other'); session_id(''); session_start(); $_SESSION['a'] = 1;
                """)
                self.assertEqual(php.program.principals(), ["ada"])

    def test_classes_that_may_be_loaded(self):
        with Php(PHP_CLASSES="ArrayObject:App\\User") as php:
            visitor = Visitor(php)
            visitor.open("session_start(); $_SESSION = ['a' => new ArrayObject([1]), 'b' => [new SplStack()], 'c' => 1];")
            self.assertEqual(visitor.show("array_keys($_SESSION)"), ["a", "c"])
            visitor.open("session_start(); $_SESSION['c'] = 2;")
            self.assertIn("b", visitor.stored()[0])
            self.assertIn("$_SESSION['b'] is not loaded: CLOAKROOM_CLIENT_PHP_CLASSES does not have splstack", php.logged())
            visitor.open("session_start(); $_SESSION['b'] = 3;")
            self.assertEqual(visitor.show("$_SESSION['b']"), 3)

    def test_classes_that_may_not_be_loaded(self):
        evil = 'O:4:"Evil":1:{s:1:"x";i:1;}'
        array, storage = f"x:i:0;a:1:{{i:0;{evil}}};m:a:0:{{}}", f"x:i:1;{evil},N;;m:a:0:{{}}"
        key = f"b|{evil}{'z' * 300}"
        escaped = f'a:1:{{s:{len(key)}:"{key}";i:1;}}'
        tags = {
            "array": f'C:11:"ArrayObject":{len(array)}:{{{array}}}',
            "storage": f'C:16:"SplObjectStorage":{len(storage)}:{{{storage}}}',
            "php::" + hashlib.sha1(key.encode()).hexdigest(): escaped,
            "backslash": 'a:1:{i:0;O:5:"\\Evil":0:{}}',
        }
        values = {key: {"$cloakroom": {"php": base64.b64encode(text.encode()).decode()}} for key, text in tags.items()}
        values |= {f"a|{evil}z": "v", "!b": 1, "c": 1}
        code = "class Evil { public $x; function __wakeup() { echo 'EVIL'; } function __destruct() { echo 'EVIL'; } }"
        with Php(PHP_CLASSES="ArrayObject:SplObjectStorage", buffer=4096) as php:
            visitor = Visitor(php)
            visitor.open("session_start(); $_SESSION['c'] = 0;")
            [one] = php.program.service("GET", "").json["sessions"]
            headers = {"Authorization": f"Bearer {kit.SERVICE_TOKEN}"}
            kit.fetch(php.program.api, "PATCH", f"/_sessions/{one['id']}", {"set": values}, headers)
            for handler, count in [("php", 1), ("php_serialize", 4)]:
                start = f"{code} ini_set('session.serialize_handler', '{handler}'); session_start();"
                self.assertEqual(visitor.open(f"{start} echo count($_SESSION);").text, str(count), php.logged())
            self.assertEqual(visitor.stored(), [values])
            self.assertIn("session.serialize_handler = php cannot hold its key", php.logged())

    def test_name_of_the_application(self):
        with Php(PHP_NAME="app") as php:
            visitor = Visitor(php)
            visitor.open("session_name('app'); session_start(); $_SESSION['a'] = 1;")
            self.assertEqual(visitor.stored(), [{"a": 1}])
            self.assertEqual(visitor.open("echo isset($_COOKIE['app']) ? 'there' : 'missing';").text, "there")
            visitor.open("session_name('app'); session_start(); session_destroy();")
            self.assertEqual(visitor.jar, {})

    def test_https_of_the_guide(self):
        guide = (ROOT / "docs/guides/https.md").read_text()
        line = re.search(r"\| PHP \| `(.*?)` \|", guide)[1]
        with Php() as php:
            page = php.page(f"{line} echo $_SERVER['HTTPS'];")
            self.assertEqual(Visitor(php).send("GET", page).text, "off")
            forwarded = {"X-Forwarded-Proto": "https"}
            self.assertEqual(kit.fetch(php.port, "GET", page, headers=forwarded).text, "on")

    def test_api_on_a_unix_socket(self):
        with tempfile.TemporaryDirectory() as directory:
            socket = f"{directory}/api.sock"
            url = "http+unix://" + socket.replace("/", "%2F") + "/_session"
            with Php(URL=url, is_exchange=True, SECRETS="") as php:
                public, admin = kit.free_ports(2)
                file = pathlib.Path(directory) / "cloakroom.toml"
                file.write_text(f"""
                    [[listen]]
                    address = "127.0.0.1:{public}"
                    [api]
                    address = "unix:{socket}"
                    [admin]
                    address = "127.0.0.1:{admin}"
                    [store]
                    url = "memory:"
                    [session]
                    keys = ["{"A" * 42}E"]
                    [cookie]
                    secure = false
                    name = "id"
                    [[route]]
                    upstream = "http://127.0.0.1:{php.port}"
                    header_exchange = true
                """)
                log = open(f"{directory}/log", "w")
                with log, kit.process([PROGRAM, "run", "--config", file], public, stderr=log):
                    visitor = kit.Visitor(public)
                    code = "session_start(); $_SESSION['a'] = ($_SESSION['a'] ?? 0) + 1; echo $_SESSION['a'];"
                    for page in [php.page(code), php.page(f"{code} Cloakroom\\save();")]:
                        visitor.send("GET", page)
                    self.assertEqual(visitor.send("GET", php.page(code)).text, "3")
                    # Who reaches the site need not be who reaches the socket.
                    forged = {"X-Session-Url": url, "X-Session-Token": "x", "X-Session-Id": "A" * 22, "X-Session-Data": '{"a": 7}'}
                    self.assertEqual(kit.fetch(php.port, "GET", php.page(code), headers=forged).status, 403)


def snippets(kind):
    guide = (ROOT / "docs/guides/php.md").read_text()
    return re.findall(rf"```{kind}\n(.*?)```", guide, re.DOTALL)


class Guide(unittest.TestCase):
    """The commands and files of docs/guides/php.md."""

    def setUp(self):
        self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.public, self.site, self.api, self.admin = kit.free_ports(4)

    def counts(self):
        visitor = kit.Visitor(self.public)
        self.assertEqual([visitor.send("GET", "/").text for _ in range(3)], ["Visit 1\n", "Visit 2\n", "Visit 3\n"])
        self.assertEqual(len(visitor.jar), 1)
        return visitor

    def write_site(self):
        (self.directory / "site").mkdir(mode=0o755)
        for text in snippets("php"):
            if name := re.match(r"<\?php\n// (site/\w+\.php)\n", text):
                (self.directory / name[1]).write_text(text)

    @contextlib.contextmanager
    def started(self, part):
        """Runs the command of the guide that has a text."""
        command = next(text for text in snippets("sh") if part in text)
        command = command.replace("3000", str(self.site)).replace("/opt/cloakroom/cloakroom.php", str(CLIENT))
        listen = f"--listen 127.0.0.1:{self.public}"
        # Waiting for the shell must be waiting for the program, which is started again on the same ports.
        command = command.replace("cloakroom run ", f"exec cloakroom run {listen} ")
        environment = {
            **os.environ, "PATH": f"{self.directory}:{os.environ['PATH']}", "STATE_DIRECTORY": str(self.directory / "state"),
            "CLOAKROOM_API_ADDRESS": f"127.0.0.1:{self.api}", "CLOAKROOM_ADMIN_ADDRESS": f"127.0.0.1:{self.admin}",
            "CLOAKROOM_COOKIE_SECURE": "false",
        }  # fmt: skip
        # The site listens after Cloakroom does.
        with (
            open(self.directory / "log", "ab") as log,
            kit.process(
                ["sh", "-c", command], self.site, env=environment, cwd=self.directory, stdout=log, stderr=log
            ) as server,
        ):
            kit.wait_for(self.public, server)
            yield

    def test_try_it(self):
        self.write_site()
        (self.directory / "cloakroom").symlink_to(os.path.abspath(PROGRAM))
        with self.started("cloakroom run --upstream"):
            visitor = self.counts()
        with self.started("cloakroom run --upstream"):
            self.assertEqual(visitor.send("GET", "/").text, "Visit 4\n")
            self.assertEqual(len(visitor.jar), 1)
            self.log_in_and_out()

    def log_in_and_out(self):
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

        def read(path, form=None):
            return browser.open(f"http://127.0.0.1:{self.public}{path}", form, kit.PATIENCE).read().decode()

        self.assertIn("Hello stranger", read("/account.php"))
        self.assertEqual(read("/"), "Visit 1\n")
        self.assertIn("Hello ada", read("/account.php", b"name=ada"))
        self.assertEqual(read("/"), "Visit 2\n")
        self.assertIn("Hello stranger", read("/account.php", b"name=ada&logout="))
        self.assertEqual(read("/"), "Visit 1\n")

    def test_secret(self):
        self.write_site()
        (self.directory / "cloakroom").symlink_to(os.path.abspath(PROGRAM))
        environment = {**os.environ, "PATH": f"{self.directory}:{os.environ['PATH']}"}
        make = next(text for text in snippets("sh") if "generate-key" in text)
        subprocess.run(["sh", "-ec", make], check=True, cwd=self.directory, env=environment)
        self.assertEqual((self.directory / "client-secret").stat().st_mode & 0o777, 0o600)
        (self.directory / "cloakroom.toml").write_text(snippets("toml")[0].replace("3000", str(self.site)))
        with self.started("cloakroom run cloakroom.toml"):
            self.counts()
            self.assertEqual(kit.fetch(self.site, "GET", "/").status, 403)
        self.assertIn("X-Session-Proof is missing or wrong", (self.directory / "log").read_text())

    def replaced(self, text, **more):
        """Returns a snippet with the paths and ports of the test."""
        names = {
            "/opt/cloakroom/cloakroom.php": CLIENT, "/etc/cloakroom/client-secret": self.secret,
            "127.0.0.1:8081": f"127.0.0.1:{self.api}", "127.0.0.1:3000": f"127.0.0.1:{self.site}",
            "/var/www/site": self.directory / "site", "/run/php/php8.2-fpm.sock": self.directory / "fpm.sock", **more,
        }  # fmt: skip
        for name, value in names.items():
            text = text.replace(name, str(value))
        return text

    def behind_the_program(self):
        """Runs the program with the guide's configuration for the secret."""
        file = self.directory / "cloakroom.toml"
        toml = self.replaced(snippets("toml")[0]).replace("[api]\n", f'[api]\naddress = "127.0.0.1:{self.api}"\n')
        file.write_text(toml + f"""
            [[listen]]
            address = "127.0.0.1:{self.public}"
            [admin]
            address = "127.0.0.1:{self.admin}"
            [store]
            url = "memory:"
            [session]
            keys = ["{"A" * 42}E"]
            [cookie]
            secure = false
            name = "id"
        """)
        log = self.enterContext(open(self.directory / "log", "wb"))
        self.enterContext(kit.process([PROGRAM, "run", "--config", file], self.public, stdout=log, stderr=log))
        return log

    def make_secret(self):
        self.directory.chmod(0o755)
        self.secret = self.directory / "client-secret"
        made = subprocess.run([PROGRAM, "generate-key"], capture_output=True, check=True, timeout=kit.PATIENCE)
        self.secret.write_bytes(made.stdout)
        self.write_site()

    @unittest.skipUnless(find_fpm(), "needs php-fpm")
    def test_fpm_behind_nginx(self):
        self.make_secret()
        pool = self.replaced(snippets("ini")[0])
        (self.directory / "fpm.conf").write_text(f"""
[global]
error_log = {self.directory}/fpm.log
[www]
listen = {self.directory}/fpm.sock
user = {getpass.getuser()}
listen.mode = 0666
pm = static
pm.max_children = 2
{pool}""")
        server = self.replaced(snippets("nginx")[0], **{"include fastcgi_params": "include /etc/nginx/fastcgi_params"})
        frame = NGINX.format(directory=self.directory, port=0, pages="")
        frame = frame[: frame.index("    server {")]
        (self.directory / "nginx.conf").write_text(f"{frame}{server}}}")
        fpm = [find_fpm(), "-n", "-F", "-R", "-y", self.directory / "fpm.conf"]
        process = subprocess.Popen(fpm, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait, timeout=kit.PATIENCE)
        self.addCleanup(process.terminate)
        nginx = ["nginx", "-p", self.directory, "-e", self.directory / "nginx.log", "-c", self.directory / "nginx.conf"]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        self.enterContext(kit.process(nginx, self.site, env=environment))
        self.behind_the_program()
        self.counts()

    @unittest.skipUnless(find_apache(), "needs Apache with mod_php")
    def test_apache(self):
        self.make_secret()
        self.secret.chmod(0o644)
        command, modules = find_apache()
        settings = APACHE.format(
            directory=self.directory, log=self.directory / "apache.log", port=self.site, modules=modules,
            php=next(modules.glob("libphp*.so")), pages=self.directory / "site", client="none", buffer=4096,
        )  # fmt: skip
        settings = settings.replace("php_admin_value auto_prepend_file none\n", self.replaced(snippets("apache")[0]))
        (self.directory / "apache.conf").write_text(settings)
        apache = [command, "-DFOREGROUND", "-f", self.directory / "apache.conf"]
        self.enterContext(kit.process(apache, self.site, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        self.behind_the_program()
        self.counts()


class Failing(http.server.ThreadingHTTPServer):
    """A session API that fails."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), FailingHandler)
        self.answer, self.seen = answer, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/_session"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class FailingHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.client_address[1], body))
        answer = self.server.answer(self.command, len(self.server.seen))
        if answer is None:
            self.close_connection = True
            return
        self.wfile.write(answer)
        self.close_connection = b"Kept" not in answer

    do_PATCH = do_GET

    def log_message(self, *_):
        pass


def answer(status, body, head="", kept="Kept: 1\r\n"):
    return f"HTTP/1.1 {status} X\r\n{kept}{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


SESSION = json.dumps({"id": "A" * 22, "version": 1, "principal": None, "values": {"a": 1}})


class Errors(unittest.TestCase):
    """An API that fails. Without an output buffer and with one."""

    def fetch(self, api, code, buffer):
        with Php(URL=api.url, buffer=buffer) as php:
            headers = {"X-Session-Url": api.url, "X-Session-Token": "token", "X-Session-Id": "A" * 22}
            response = kit.fetch(php.port, "GET", php.page(code), headers=headers)
            return response, php.logged()

    def each(self, answer, code, status, log):
        for buffer in [0, 4096]:
            api = Failing(answer)
            response, logged = self.fetch(api, code, buffer)
            self.assertEqual(response.status, status, f"{buffer}: {response.text} {logged}")
            self.assertIn(log, logged)
            api.shutdown()
            api.server_close()
            yield response, api

    CHANGE = "session_start(); $_SESSION['key'] = 2; header('Location: /elsewhere'); header('Content-Length: 4'); echo 'page';"

    def test_reading_from_an_unavailable_store(self):
        code = "try { session_start(); } catch (Throwable) { } echo 'page';"
        problem = json.dumps({"code": "store_unavailable"})
        for response, _ in self.each(lambda *_: answer(503, problem), code, 503, "GET of the session failed: store_unavailable"):
            self.assertEqual(response.text, "Service unavailable\n")
            self.assertIn("Retry-After", response.headers)

    def test_writing_to_an_unavailable_store(self):
        def respond(method, _):
            return answer(200, SESSION) if method == "GET" else answer(503, json.dumps({"code": "store_unavailable"}))

        for response, _ in self.each(respond, self.CHANGE, 503, "PATCH of the session (key) failed: store_unavailable"):
            self.assertNotIn("Location", response.headers)

    def test_unknown_outcome_is_not_repeated(self):
        def respond(method, _):
            return answer(200, SESSION) if method == "GET" else b"HTTP/1.1 2"

        for _, api in self.each(respond, self.CHANGE, 503, "the response ended early"):
            self.assertEqual([one[0] for one in api.seen], ["GET", "PATCH"])

    def test_kept_connection_that_was_closed_is_replaced(self):
        code = self.CHANGE.replace("session_start();", "session_start(); usleep(100000);")
        for _, api in self.each(lambda *_: answer(200, SESSION, kept=""), code, 302, ""):
            self.assertEqual([one[0] for one in api.seen], ["GET", "PATCH"])
            self.assertNotEqual(api.seen[0][1], api.seen[1][1])

    def test_connection_is_kept(self):
        for _, api in self.each(lambda *_: answer(200, SESSION), self.CHANGE, 302, ""):
            self.assertEqual(api.seen[0][1], api.seen[1][1])

    def test_answer_that_does_not_come(self):
        api = Failing(lambda *_: time.sleep(12))
        start = time.monotonic()
        response, logged = self.fetch(api, self.CHANGE, 0)
        self.assertEqual(response.status, 503)
        self.assertIn("no answer within 10 s", logged)
        self.assertLess(time.monotonic() - start, 13)
        self.assertEqual(len(api.seen), 1)

    def test_nothing_listens(self):
        api = Failing(lambda *_: None)
        api.shutdown()
        api.server_close()
        for buffer in [0, 4096]:
            response, logged = self.fetch(api, self.CHANGE, buffer)
            self.assertEqual(response.status, 503)
            self.assertIn("cannot connect to", logged)

    def test_refused_write_is_an_exception(self):
        def respond(method, _):
            return answer(200, SESSION) if method == "GET" else answer(422, json.dumps({"code": "invalid_patch"}))

        code = "session_start(); $_SESSION['key'] = 2; try { Cloakroom\\save(); } catch (Cloakroom\\SessionError $e) { echo $e->getMessage(); }"
        for response, _ in self.each(respond, code, 500, ""):
            self.assertIn("invalid_patch", response.text)
            self.assertIn("key", response.text)

    def test_write_that_was_sent_whole_is_not_repeated(self):
        # Closed without any answer, on the kept connection of the GET.
        def respond(method, _):
            return answer(200, SESSION) if method == "GET" else None

        for _, api in self.each(respond, self.CHANGE, 503, "the connection was closed"):
            self.assertEqual([one[0] for one in api.seen], ["GET", "PATCH"])

    def test_nothing_follows_an_unknown_outcome(self):
        def respond(method, _):
            return answer(200, SESSION) if method == "GET" else answer(504, json.dumps({"code": "outcome_unknown"}))

        code = """
            register_shutdown_function(function () {
                session_start(); $_SESSION['more'] = 1; Cloakroom\\save(); session_write_close();
            });
            session_start(); $_SESSION['key'] = 2; Cloakroom\\save();
        """
        for response, api in self.each(respond, code, 503, "PATCH of the session (key) failed: outcome_unknown"):
            self.assertEqual([one[0] for one in api.seen], ["GET", "PATCH"])
            self.assertNotIn("X-Session-Patch", response.headers)

    def refusing(self, status, code):
        return lambda method, _: answer(200, SESSION) if method == "GET" else answer(status, json.dumps({"code": code}))

    def test_session_that_is_gone_is_dropped(self):
        for status, code in [(409, "session_gone"), (409, "session_rotated"), (410, "request_gone"), (422, "not_an_array")]:
            log = f"PATCH of the session (key) failed: {code}"
            for response, _ in self.each(self.refusing(status, code), self.CHANGE, 302, log):
                self.assertEqual(response.text, "page")

    def test_other_refusals_are_not_dropped(self):
        for status, code in [(409, "response_committed"), (409, "ambiguous_cookie"), (404, "no_such_session"), (409, "new")]:
            log = f"PATCH of the session (key) failed: {code}"
            for response, _ in self.each(self.refusing(status, code), self.CHANGE, 503, log):
                self.assertNotIn("Location", response.headers)
            late = "session_start(); echo 'page'; @ob_flush(); flush(); $_SESSION['key'] = 2; Cloakroom\\save(); echo 'end';"
            for response, _ in self.each(self.refusing(status, code), late, 200, log):
                self.assertEqual(response.text, "pageend")


if __name__ == "__main__":
    unittest.main()
