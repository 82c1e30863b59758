"""Runs Django's own tests of session engines (SessionTestsMixin) against this client and the program.

    CLOAKROOM=… python3 tests/django_suite.py [-v] [--mode api|headers] [--source DIRECTORY]

The tests are those of the installed version of Django, from its source distribution, unchanged. Each `SessionStore()`
of a test is a request through the program, which waits in this process until the test ends, or until a store with
the same key is made: that one is the visitor's next request.
"""

import argparse
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import unittest

import django
from django.conf import settings
from support import Park, kit, program, serve
from support import settings as client_settings


def unpack(directory):
    """Returns the source distribution of the installed version, from the package index."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", directory]
    subprocess.run([*command, f"django=={django.__version__}"], check=True)
    [archive] = pathlib.Path(directory).glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(directory, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


class Backend:
    """Makes a SessionStore of a request."""

    def __init__(self, park, running):
        self.park, self.running = park, running
        self.open = []

    def __call__(self, session_key=None):
        from cloakroom import django as engine

        visitor = self.running.visitor()
        for store, jar_owner, end in self.open:
            if session_key and store.session_key == session_key:
                end()
                visitor = jar_owner
        environ, end = self.park.request(visitor)
        engine._environ.set(environ)
        store = engine.SessionStore(session_key)
        self.open.append((store, visitor, end))
        return store

    def close(self):
        for _, _, end in self.open:
            end()
        self.open.clear()


def test_case(backend):
    from django.test import SimpleTestCase
    from sessions_tests.tests import SessionTestsMixin

    class CloakroomSessionTests(SessionTestsMixin, SimpleTestCase):
        def setUp(self):
            self.addCleanup(backend.close)
            super().setUp()

    CloakroomSessionTests.backend = staticmethod(backend)
    return CloakroomSessionTests


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=["api", "headers"], action="append")
    parser.add_argument("--source", help="an unpacked source distribution of Django")
    parser.add_argument("-v", action="store_true")
    options = parser.parse_args()
    has_failed = False
    with tempfile.TemporaryDirectory() as directory:
        sys.path.insert(0, str(pathlib.Path(options.source or unpack(directory)) / "tests"))
        settings.configure(
            SECRET_KEY="key",
            SESSION_ENGINE="cloakroom.django",
            USE_TZ=True,
            INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.sessions", "sessions_tests"],
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        )
        django.setup()
        park = Park()
        for mode in options.mode or ["api", "headers"]:
            with serve(park) as port, program(port, mode) as running, client_settings(**running.settings):
                from cloakroom import django as engine

                engine.client.cache_clear()
                backend = Backend(park, running)
                suite = unittest.defaultTestLoader.loadTestsFromTestCase(test_case(backend))
                result = unittest.TextTestRunner(verbosity=1 + options.v, buffer=True).run(suite)
                passed = result.testsRun - len(result.failures) - len(result.errors)
                calls = running.api_calls()
                print(f"Django {django.__version__}, {mode}: {passed} of {result.testsRun} pass, with {calls} calls")
                kit.add_row(
                    "suites",
                    client="Django",
                    suite=f"SessionTestsMixin of Django {django.__version__}, {kit.MODE_NAMES[mode]}",
                    result=f"{passed} of {result.testsRun} pass",
                )
                has_failed |= not result.wasSuccessful()
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
