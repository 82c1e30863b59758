"""Runs cloakroom.sh behind the program: python3 test_cgi.py [--binary PATH] [--shell SHELL]"""

import argparse
import concurrent.futures
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent.parent / "tests" / "clients"))

import kit  # noqa: E402

OPTIONS = argparse.Namespace(binary="", shell="sh")
TEXTS = [
    "", "Zoë 😀", "\"quotes\" and \\backslashes\\", "a\nb\tc\rd", "\x01\x1f\x7f", "$(id) `id` ${HOME} *", "%41+%",
    "-n", "a b/c?d#e", "'",
]  # fmt: skip


# Its command; one that was only unpacked also needs `-m` and the directory of its modules.
LIGHTTPD = os.environ.get("LIGHTTPD") or shutil.which("lighttpd", path=f"{os.environ['PATH']}:/usr/sbin")


def snippet(language, part=""):
    """Returns the first block of the guide in a language that has a text."""
    guide = (HERE.parent.parent.parent / "docs/guides/cgi.md").read_text()
    for block in guide.split(f"```{language}\n")[1:]:
        text = "\n".join(line[3:] for line in block.split("```")[0].splitlines()) + "\n"
        if part in text:
            return text
    raise AssertionError(f"no {language} block with {part}")


def path_of(function, *arguments):
    return f"/{function}?" + "&".join(urllib.parse.quote(one, safe="") for one in arguments)


class CgiTest(unittest.TestCase):
    def setUp(self):
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.directory = pathlib.Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.log = self.directory / "site.log"
        api, self.site, self.second = kit.free_ports(3)
        # curl reports its command line, and then runs.
        tools = self.directory / "bin"
        tools.mkdir()
        curl = tools / "curl"
        report = f'printf "%s\\n" "$*" >>{self.directory}/commands'
        curl.write_text(f'#!/bin/sh\n{report}\nexec {shutil.which("curl")} "$@"\n')
        curl.chmod(0o755)
        self.stack.enter_context(self.start_site(self.site, f"http://127.0.0.1:{api}/_session"))
        self.program = self.stack.enter_context(kit.Program.run(OPTIONS.binary, self.directory, self.site, api=api))
        self.visitor = self.program.visitor()

    @contextlib.contextmanager
    def start_site(self, port, url, script=HERE / "site.sh"):
        command = [sys.executable, HERE / "server.py", str(port), script, *OPTIONS.shell.split()]
        environment = {
            **os.environ, "CLOAKROOM_CLIENT_URL": url, "PATH": f"{self.directory}/bin:{os.environ['PATH']}",
            "http_proxy": "http://127.0.0.1:9",
        }  # fmt: skip
        with open(self.log, "ab") as log, kit.process(command, port, env=environment, stderr=log):
            yield

    def call(self, function, *arguments, visitor=None, expects=200):
        response = (visitor or self.visitor).send("POST", path_of(function, *arguments), expects=expects)
        return response.text

    def value(self, key):
        return json.loads(self.call("session_get", key))

    def test_counter_counts(self):
        self.assertEqual([self.call("session_increment", "n") for _ in range(3)], ["1", "2", "3"])
        self.assertEqual(self.call("session_increment", "n", "-5"), "-2")

    def test_parallel_requests_lose_nothing(self):
        self.call("session_set", "a", "1")
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            copies = [self.visitor.copy() for _ in range(50)]
            list(pool.map(lambda one: self.call("session_increment", "n", visitor=one), copies))
            list(pool.map(lambda one: self.call("session_append", "list", "7", visitor=one), copies))
            members = [json.dumps({f"m{n}": n}) for n in range(50)]
            list(pool.map(lambda one: self.call("session_merge", "cart", one[0], visitor=one[1]), zip(members, copies)))
        self.assertEqual(self.value("n"), 50)
        self.assertEqual(self.value("list"), [7] * 50)
        self.assertEqual(len(self.value("cart")), 50)

    def test_texts_come_back(self):
        for text in TEXTS:
            with self.subTest(text=text):
                self.call("session_set_text", "text", text)
                self.assertEqual(self.value("text"), text)
                self.assertEqual(self.call("session_text", "text").rstrip("\n"), text.rstrip("\n"))

    def test_keys_of_any_text(self):
        for key in TEXTS[1:]:
            with self.subTest(key=key):
                self.call("session_set", key, '{"a": [1, null]}')
                self.assertEqual(self.value(key), {"a": [1, None]})
                self.call("session_merge", key, '{"b": 2}')
                self.assertEqual(self.value(key), {"a": [1, None], "b": 2})
                self.call("session_remove", key)
                self.assertEqual(self.call("session_get", key), "MISSING")

    def test_missing_values_are_missing(self):
        for function in ["session_get", "session_text", "session_pop"]:
            self.assertEqual(self.call(function, "x"), "MISSING")
        self.assertEqual(self.call("session_values"), "{}")
        self.assertFalse(self.visitor.jar)
        self.call("session_set", "a", "1")
        self.assertEqual(self.call("session_get", "x"), "MISSING")
        self.assertEqual(self.call("session_remove", "x"), "")

    def test_values_are_popped_once(self):
        self.call("session_set", "flash", '["saved"]')
        self.assertEqual(self.call("session_pop", "flash"), '["saved"]')
        self.assertEqual(self.call("session_pop", "flash"), "MISSING")

    def test_calls_of_one_request_see_each_other(self):
        self.assertEqual(self.call("both", "a", "1"), "1")
        self.assertEqual(self.value("a"), 1)

    def test_untouched_pages_make_no_call(self):
        before = self.program.api_calls()
        self.call("untouched")
        self.assertEqual(self.program.api_calls(), before)

    def test_log_in_rotates_and_keeps_values(self):
        self.call("session_set", "cart", "[1]")
        planted, before = self.visitor.copy(), self.call("session_id")
        for name in ["ada", 'Zoë "quote" \\ back']:
            self.call("session_login", name)
            self.assertEqual(self.call("session_principal"), name)
            self.assertEqual(self.program.principals(), [name])
            self.assertNotEqual(self.call("session_id"), before)
            self.assertEqual(self.call("session_principal", visitor=planted.copy()), "MISSING")
            self.call("session_set", "cart", "[1]")
        self.call("session_logout", "keep")
        self.assertEqual(self.call("session_principal"), "MISSING")
        self.assertEqual(self.value("cart"), [1])

    def test_log_out_destroys(self):
        self.call("session_set", "cart", "[1]")
        self.call("session_login", "ada")
        self.call("session_logout")
        self.assertEqual(self.program.principals(), [])
        self.assertEqual(self.call("session_values"), "{}")

    def test_values_cannot_pass_for_the_principal(self):
        self.call("session_set", "principal", '"root"')
        self.call("session_set", "x", '{"principal": "root", "id": "root"}')
        self.assertEqual(self.call("session_principal"), "MISSING")
        self.call("session_login", "ada")
        self.assertEqual(self.call("session_principal"), "ada")
        self.assertNotIn("root", self.call("session_id"))

    def test_regenerating_keeps_values(self):
        self.call("session_set", "a", "1")
        before, token = self.call("session_id"), dict(self.visitor.jar)
        self.call("session_regenerate")
        self.assertNotEqual(self.call("session_id"), before)
        self.assertNotEqual(self.visitor.jar, token)
        self.assertEqual(self.value("a"), 1)

    def test_the_id_of_a_new_session_stays(self):
        first = self.call("session_id")
        self.assertTrue(first)
        self.assertEqual(self.call("session_id"), first)

    def test_revoked_session_leaves_a_page(self):
        self.call("session_set", "a", "1")
        [session] = self.program.service("GET", "").json["sessions"]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            slow = pool.submit(self.call, "slow", "1", visitor=self.visitor.copy())
            time.sleep(0.15)
            self.program.service("DELETE", f"/{session['id']}")
            self.assertEqual(slow.result(), "")
        self.assertIn("session_gone: dropped a POST of 'list'", self.log.read_text())

    def test_large_values(self):
        long = json.dumps("x" * 300_000)
        self.visitor.send("POST", "/body?long", json.loads(long))
        self.assertEqual(self.call("session_get", "long"), long)
        self.visitor.send("POST", "/body?too%20long", "x" * 1_100_000, expects=500)
        self.assertIn("'too long' was not written: session_too_large", self.log.read_text())

    def test_errors_of_the_site_are_500(self):
        self.call("session_set", "a", "[1,", expects=500)
        self.call("session_append", "", "1", expects=500)
        self.call("session_set", "a", '"text"')
        self.call("session_increment", "a", expects=500)
        self.assertIn("'a' was not written: not_an_integer", self.log.read_text())

    def test_requests_from_elsewhere_are_refused(self):
        forged = {"X-Session-Url": self.program.url, "X-Session-Token": "x", "X-Session-Principal": "root"}
        for path in ["/session_principal", "/session_values", "/piped", "/plain?a&1"]:
            self.assertEqual(kit.fetch(self.site, "POST", path, headers=forged).status, 403, path)
            self.assertEqual(kit.fetch(self.site, "POST", path).status, 500, path)
        for name, value in [
            ("X-Session-Url", "http://127.0.0.1:9/_session"), ("X-Session-Token", "x, y"), ("X-Session-Token", "x@y")
        ]:  # fmt: skip
            response = kit.fetch(self.site, "POST", "/session_values", headers={**forged, name: value})
            self.assertEqual((response.status, response.text), (403, "Forbidden\n"))
        self.assertIn("did not come through Cloakroom", self.log.read_text())

    def test_an_api_that_is_gone_is_a_503(self):
        [port] = kit.free_ports(1)
        url = f"http://127.0.0.1:{port}/_session"
        with self.start_site(self.second, url):
            for path in ["/session_values", "/piped", "/plain?a&1"]:
                headers = {"X-Session-Url": url, "X-Session-Token": "x"}
                self.assertEqual(kit.fetch(self.second, "POST", path, headers=headers).status, 503, path)

    def test_refused_log_in_does_not_look_like_one(self):
        class Refusal(http.server.BaseHTTPRequestHandler):
            def do_PATCH(self):
                code = self.headers["X-Session-Token"]
                content = json.dumps({"code": code}).encode()
                self.send_response(410 if code == "request_gone" else 409)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        api = http.server.HTTPServer(("127.0.0.1", 0), Refusal)
        threading.Thread(target=api.serve_forever, daemon=True).start()
        self.addCleanup(api.server_close)
        self.addCleanup(api.shutdown)
        url = f"http://127.0.0.1:{api.server_port}/_session"
        with self.start_site(self.second, url):
            for code, path, status in [
                ("request_gone", path_of("session_login", "ada"), 503),
                ("request_gone", path_of("session_logout", "keep"), 503),
                ("request_gone", "/session_logout", 503),
                ("request_gone", path_of("session_merge", "a", "{}"), 200),
                ("session_rotated", path_of("session_login", "ada"), 503),
                ("session_gone", "/session_logout", 200),
            ]:
                headers = {"X-Session-Url": url, "X-Session-Token": code}
                found = kit.fetch(self.second, "POST", path, headers=headers).status
                self.assertEqual(found, status, f"{path}, {code}")

    def test_api_on_a_unix_socket(self):
        path, [public, admin] = self.directory / "api socket", kit.free_ports(2)
        file = self.directory / "cloakroom.toml"
        file.write_text(f"""
[[listen]]
address = "127.0.0.1:{public}"
[admin]
address = "127.0.0.1:{admin}"
[api]
address = "unix:{path}"
[store]
url = "memory:"
[session]
keys = ["AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"]
[cookie]
secure = false
name = "id"
[[route]]
upstream = "http://127.0.0.1:{self.second}"
""")
        url = f"http+unix://{urllib.parse.quote(str(path), safe='')}/_session"
        command, log = [OPTIONS.binary, "run", "--config", file], self.stack.enter_context(open(self.log, "ab"))
        with self.start_site(self.second, url), kit.process(command, public, stderr=log):
            visitor = kit.Visitor(public)
            self.assertEqual([self.call("session_increment", "n", visitor=visitor) for _ in range(2)], ["1", "2"])

    def write_script_of_the_guide(self, name):
        text = snippet("sh", "#!/bin/sh").replace("/usr/local/lib", str(HERE.parent))
        (self.directory / name).write_text(text)
        (self.directory / name).chmod(0o755)
        return self.directory / name

    def visit_site_of_the_guide(self, visitor):
        self.assertEqual(visitor.send("GET", "/").text, "Hello stranger, visit 1\n")
        visitor.send("GET", "/login?name=Ada+%26+Zo%C3%AB", expects=303)
        self.assertEqual(visitor.send("GET", "/").text, "Hello Ada & Zoë, visit 2\n")
        visitor.send("GET", "/logout", expects=303)
        self.assertEqual(visitor.send("GET", "/").text, "Hello stranger, visit 1\n")

    def test_script_of_the_guide(self):
        script = self.write_script_of_the_guide("guide.sh")
        [api] = kit.free_ports(1)
        with (
            self.start_site(self.second, f"http://127.0.0.1:{api}/_session", script),
            kit.Program.run(OPTIONS.binary, self.directory, self.second, api=api) as program,
        ):
            self.visit_site_of_the_guide(program.visitor())

    @unittest.skipUnless(LIGHTTPD, "needs lighttpd")
    def test_lighttpd_of_the_guide(self):
        self.write_script_of_the_guide("site.cgi")
        settings = snippet("lighttpd").replace("3000", str(self.second))
        (self.directory / "lighttpd.conf").write_text(settings)
        public, api, admin = kit.free_ports(3)
        command = snippet("sh", "cloakroom run").replace("3000", str(self.second)).replace("/usr/sbin/lighttpd", LIGHTTPD)
        listen = f"exec {os.path.abspath(OPTIONS.binary)} run --listen 127.0.0.1:{public}"
        environment = {
            **os.environ, "CLOAKROOM_API_ADDRESS": f"127.0.0.1:{api}", "CLOAKROOM_ADMIN_ADDRESS": f"127.0.0.1:{admin}",
            "CLOAKROOM_COOKIE_SECURE": "false", "STATE_DIRECTORY": f"{self.directory}/state",
        }  # fmt: skip
        with (
            open(self.log, "ab") as log,
            kit.process(
                ["sh", "-c", command.replace("cloakroom run", listen)], self.second,
                cwd=self.directory, env=environment, stdout=log, stderr=log,
            ) as server,
        ):  # fmt: skip
            kit.wait_for(public, server)
            self.visit_site_of_the_guide(kit.Visitor(public))

    def test_no_token_in_command_lines(self):
        self.call("session_set", "a", '"of the session"')
        self.call("session_login", "ada")
        commands = (self.directory / "commands").read_text()
        self.assertIn("--request PUT", commands)
        for text in ["Token", "of the session", "ada"]:
            self.assertNotIn(text, commands)


class ShellTest(unittest.TestCase):
    def test_quoting_without_the_program(self):
        script = f"""
            . {HERE.parent}/cloakroom.sh
            json_text "$1"
            percent_encode "$1"
            echo
            percent_decode "$(percent_encode "$1")"
            echo .
        """
        for text in TEXTS:
            command = [*OPTIONS.shell.split(), "-euc", script, "sh", text]
            output = subprocess.run(command, capture_output=True, check=True).stdout
            quoted, encoded, decoded = output.decode().split("\n", 2)
            self.assertEqual(json.loads(quoted), text)
            self.assertEqual(urllib.parse.unquote(encoded), text)
            self.assertEqual(decoded, f"{text}.\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=os.environ.get("CLOAKROOM", "target/debug/cloakroom"))
    parser.add_argument("--shell", default="sh", help="e.g. `busybox sh`")
    OPTIONS, rest = parser.parse_known_args()
    unittest.main(argv=[sys.argv[0], *rest])
