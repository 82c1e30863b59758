"""Starlette's own tests of its SessionMiddleware, with this one in its place, behind the program.

STARLETTE_SOURCE has the path of an unpacked source distribution. The tests of the attributes of the cookie and of
Vary are left out, and
test_session, which demands that Max-Age is not the last attribute: these are Cloakroom's.
"""

import os
import sys

import pytest
import starlette
from support import Behind, kit

import cloakroom.asgi

SOURCE = os.environ.get("STARLETTE_SOURCE")
if not SOURCE:
    pytest.skip("STARLETTE_SOURCE is not set", allow_module_level=True)
sys.path.append(SOURCE)

import httpx2 as httpx  # noqa: E402
from tests.middleware import test_session as theirs  # noqa: E402
from tests.middleware.test_session import (  # noqa: E402, F401
    test_invalid_session_cookie,
    test_session_persists_mutations,
    test_set_cookie_only_on_modification,
)


@pytest.fixture
def test_client_factory(request, mode, monkeypatch):
    """Makes clients that reach an application through the program."""
    monkeypatch.setattr(theirs, "SessionMiddleware", lambda app, **_: cloakroom.asgi.SessionMiddleware(app))
    current = []

    async def application(scope, receive, send):
        await current[-1](scope, receive, send)

    with Behind.run(lambda: application, mode, is_asgi=True) as running:

        def make(app, base_url=None, cookies=None):
            current.append(app)
            return httpx.Client(base_url=f"http://127.0.0.1:{running.public}", cookies=cookies)

        yield make
    if request.session.testsfailed == 0:
        suite = f"{request.node.originalname} of Starlette {starlette.__version__}, {kit.MODE_NAMES[mode]}"
        kit.add_row("suites", client="ASGI", suite=suite, result="passes")
