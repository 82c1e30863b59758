"""WSGI applications behind the program."""

import io
import sys
import wsgiref.util

import bottle
import pytest
from support import Behind, settings

import cloakroom.wsgi


def behind(application, mode):
    return Behind.run(lambda: cloakroom.wsgi.Middleware(application), mode)


def values_of(running):
    [session] = running.service("GET", "").json["sessions"]
    return running.service("GET", f"/{session['id']}/values").json


def error_page_after_start(environ, start_response):
    session = environ["cloakroom.session"]
    session["first"] = 1
    start_response("200 OK", [("X-First", "1")])
    try:
        raise KeyError("missing")
    except KeyError:
        session["second"] = 2
        start_response("404 Not Found", [("X-Second", "1")], sys.exc_info())
    return [b"sorry"]


def changes_after_start(environ, start_response):
    start_response("200 OK", [])
    environ["cloakroom.session"].update(first=1, second=2)
    return [b"ok"]


def generator(environ, start_response):
    environ["cloakroom.session"]["first"] = 1
    start_response("200 OK", [])
    yield b""
    environ["cloakroom.session"]["second"] = 2
    yield b"ok"


def writer(environ, start_response):
    environ["cloakroom.session"].update(first=1, second=2)
    write = start_response("200 OK", [])
    write(b"o")
    return [b"k"]


def empty(environ, start_response):
    environ["cloakroom.session"].update(first=1, second=2)
    start_response("204 No Content", [])
    return iter([])


def file(environ, start_response):
    environ["cloakroom.session"].update(first=1, second=2)
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](io.BytesIO(b"ok"))


@pytest.mark.parametrize(
    "application",
    [error_page_after_start, changes_after_start, generator, writer, empty, file],
    ids=lambda f: f.__name__,
)
def test_the_session_is_written_with_the_head(application, mode):
    with behind(application, mode) as running:
        visitor = running.visitor()
        response = visitor.send("GET", "/", expects=None)
        assert response.status < 500
        assert visitor.jar
        assert values_of(running) == {"first": 1, "second": 2}
        if application is error_page_after_start:
            assert response.status == 404
            assert "X-First" not in response.headers
            assert response.text == "sorry"


def late(environ, start_response):
    start_response("200 OK", [])
    yield b"first"
    environ["cloakroom.session"]["late"] = 1
    yield b"second"
    yield b"third"


def raises_first(environ, start_response):
    environ["cloakroom.session"]["paid"] = True
    environ["cloakroom.session"].login("ada")
    start_response("200 OK", [])
    raise RuntimeError
    yield b""


def raises_late(environ, start_response):
    yield from late(environ, start_response)
    raise RuntimeError


def test_only_what_is_complete_is_written_by_a_stream(monkeypatch):
    written = []
    monkeypatch.setattr(cloakroom.wsgi.WsgiSession, "send", lambda self, patch: written.append(patch.get("set")))
    headers = {"x-session-url": "http://127.0.0.1:8081/_session", "x-session-token": "t"}
    environ = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}

    def run(application, chunks):
        written.clear()
        body = cloakroom.wsgi.Middleware(application)(dict(environ), lambda *args: lambda data: None)
        try:
            for _ in range(chunks):
                next(body)
        finally:
            body.close()
        return list(written)

    assert run(late, 2) == [{"late": 1}], "the visitor has left"
    assert run(late, 0) == []
    with pytest.raises(StopIteration):
        run(late, 9)
    assert written == [{"late": 1}]
    for application in [raises_first, raises_late]:
        with pytest.raises(RuntimeError):
            run(application, 9)
        assert written == []


def test_a_body_that_is_not_read_is_closed():
    closed = []

    class Body:
        def __iter__(self):
            return iter([b"never"])

        def close(self):
            closed.append(True)

    environ = {}
    wsgiref.util.setup_testing_defaults(environ)
    cloakroom.wsgi.Middleware(lambda environ, start_response: Body())(environ, lambda *args: None).close()
    assert closed == [True]


def test_files_are_given_to_the_server():
    made = []

    def application(environ, start_response):
        start_response("200 OK", [])
        made.append(wsgiref.util.FileWrapper(io.BytesIO(b"ok")))
        return made[0]

    environ = {"wsgi.file_wrapper": wsgiref.util.FileWrapper}
    wsgiref.util.setup_testing_defaults(environ)
    middleware = cloakroom.wsgi.Middleware(application)
    assert middleware(environ, lambda *args: None) is made[0]


def test_beaker_applications(mode):
    app = bottle.Bottle()

    @app.get("/add")
    def add():
        session = bottle.request.environ.get("beaker.session")
        session["n"] = session.get("n", 0) + 1
        session.save()
        return {"n": session["n"], "id": session.id}

    @app.get("/end")
    def end():
        bottle.request.environ["beaker.session"].invalidate()

    with behind(app, mode) as running:
        visitor = running.visitor()
        first, second = [visitor.send("GET", "/add").json for _ in range(2)]
        assert (first["n"], second["n"]) == (1, 2)
        assert first["id"] == second["id"]
        visitor.send("GET", "/end")
        assert visitor.send("GET", "/add").json["n"] == 1


def call(application, headers):
    environ = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}
    wsgiref.util.setup_testing_defaults(environ)
    heads = []
    body = b"".join(application(environ, lambda status, headers, exc_info=None: heads.append(status)))
    return heads[-1], body


DEAD = {
    "x-session-url": "http://127.0.0.1:9/_session",
    "x-session-token": "t",
    "x-session-id": "AAECAwQFBgcICQoLDA0ODw",
}


def test_without_the_api_a_request_fails_with_503(monkeypatch):
    monkeypatch.setenv("CLOAKROOM_CLIENT_URL", DEAD["x-session-url"])
    app = bottle.Bottle()
    app.get("/")(lambda: dict(bottle.request.environ["cloakroom.session"]))  # Bottle catches errors itself

    def plain(environ, start_response):
        dict(environ["cloakroom.session"])

    def late(environ, start_response):
        start_response("200 OK", [])
        environ["cloakroom.session"].regenerate()
        yield b"not seen"

    for application in [app, plain, late]:
        status, body = call(cloakroom.wsgi.Middleware(application), DEAD)
        assert status == "503 Service Unavailable"
        assert b"not seen" not in body


def has_session(environ, start_response):
    start_response("200 OK", [])
    return [str("cloakroom.session" in environ).encode()]


def test_pages_without_a_session_need_no_headers():
    assert call(cloakroom.wsgi.Middleware(has_session), {}) == ("200 OK", b"True")


def test_requests_from_elsewhere_fail(caplog):
    def application(environ, start_response):
        dict(environ["cloakroom.session"])

    assert call(cloakroom.wsgi.Middleware(application), {})[0] == "500 Internal Server Error"
    assert "this request did not come through Cloakroom" in caplog.text
    with settings(FALLBACK="stock"):
        middleware = cloakroom.wsgi.Middleware(has_session)
    caplog.clear()
    assert [call(middleware, {})[1] for _ in range(3)] == [b"False"] * 3
    assert caplog.text.count("using the framework's own sessions") == 1
