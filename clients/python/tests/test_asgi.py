"""ASGI applications behind the program: Starlette, WebSockets, and applications without a framework."""

import asyncio
import contextlib
import json

import pytest
import websockets.sync.client
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from support import Behind, settings

import cloakroom.asgi


async def add(request):
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse({"session": request.session})


def add_in_a_thread(request):
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse({"session": request.session})


async def read_first(request):
    await request.session.aload()
    return JSONResponse({"session": request.session, "user": request.session.principal})


async def untouched(request):
    return PlainTextResponse("ok")


async def log_in(request):
    request.session.clear()
    request.session["user"] = "ada"
    request.session.login("ada")
    return PlainTextResponse("ok")


async def stream(request):
    session = request.session
    session["before"] = 1

    async def parts():
        yield "a"
        session["after"] = 1
        yield "b"

    return StreamingResponse(parts(), headers={"Vary": "Accept"})


async def stream_rejected(request):
    session = request.session

    async def parts():
        yield "a"
        session["wrong"] = object()
        yield "b"

    return StreamingResponse(parts())


async def error(request):
    request.session["error"] = 1
    raise KeyError("error")


async def chat(websocket):
    websocket.session["opened"] = websocket.session.get("opened", 0) + 1
    await websocket.accept()
    await websocket.send_json(websocket.session)
    websocket.session["said"] = await websocket.receive_text()
    await websocket.close()


def make(**options):
    return Starlette(
        routes=[
            Route("/add", add), Route("/thread", add_in_a_thread), Route("/first", read_first),
            Route("/untouched", untouched), Route("/login", log_in), Route("/stream", stream),
            Route("/stream-rejected", stream_rejected),
            Route("/error", error),
            WebSocketRoute("/chat", chat),
        ],
        middleware=[Middleware(cloakroom.asgi.SessionMiddleware, **options)],
    )  # fmt: skip


@pytest.fixture
def site(mode):
    with Behind.run(make, mode, is_asgi=True) as running:
        yield running


def only_session(running):
    [found] = running.service("GET", "").json["sessions"]
    return running.service("GET", f"/{found['id']}").json


def test_values_are_kept(site):
    visitor = site.visitor()
    assert visitor.send("GET", "/add").json == {"session": {"n": 1}}
    assert visitor.send("GET", "/thread").json == {"session": {"n": 2}}
    assert visitor.send("GET", "/first").json == {"session": {"n": 2}, "user": None}
    assert [line.split("=")[0] for line in visitor.jar] == ["id"]


def test_clear_and_log_in(site):
    visitor = site.visitor()
    visitor.send("GET", "/add")
    before = only_session(site)["id"]
    visitor.send("GET", "/login")
    found = only_session(site)
    assert (found["values"], found["principal"]) == ({"user": "ada"}, "ada")
    assert found["id"] != before
    assert visitor.send("GET", "/first").json["user"] == "ada"


def test_changes_while_the_body_is_sent_are_kept(site):
    visitor = site.visitor()
    assert visitor.send("GET", "/stream").text == "ab"
    assert only_session(site)["values"] == {"before": 1, "after": 1}


def test_a_wrong_value_after_the_head_is_logged(site, caplog):
    assert site.visitor().send("GET", "/stream-rejected").text == "ab"
    assert caplog.text.count("the session value of 'wrong' is not JSON") == 1


def test_an_unhandled_exception_saves_nothing(site):
    # As with Starlette's own middleware: the error page is made outside of it.
    site.visitor().send("GET", "/error", expects=500)
    assert site.principals() == []


def test_vary():
    for path, expected in [("/add", "Cookie"), ("/stream", "Accept, Cookie"), ("/untouched", "")]:
        with settings(TRUST="network", URL=TRUSTED["x-session-url"]):
            headers = call(make(), TRUSTED, path=path)[0]["headers"]
        assert ", ".join(value.decode() for name, value in headers if name.lower() == b"vary") == expected


def test_websockets(site):
    visitor = site.visitor()
    visitor.send("GET", "/add")
    cookie = f"id={visitor.jar['id']}"
    with websockets.sync.client.connect(
        f"ws://127.0.0.1:{site.public}/chat", additional_headers={"Cookie": cookie}, proxy=None
    ) as socket:
        assert json.loads(socket.recv()) == {"n": 1, "opened": 1}
        assert only_session(site)["values"] == {"n": 1, "opened": 1}, "written with the handshake"
        socket.send("hello")
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            socket.recv()
    assert visitor.send("GET", "/first").json["session"] == {"n": 1, "opened": 1, "said": "hello"}


def test_a_first_visit_by_websocket(site):
    with websockets.sync.client.connect(f"ws://127.0.0.1:{site.public}/chat", proxy=None) as socket:
        assert "id=" in socket.response.headers["Set-Cookie"]
        socket.send("hello")


def test_preload(mode):
    with Behind.run(lambda: make(preload=True), mode, is_asgi=True) as site:
        visitor = site.visitor()
        visitor.send("GET", "/add")
        before = site.api_calls()
        visitor.send("GET", "/untouched")
        assert site.api_calls() - before == (1 if mode == "api" else 0)
        assert visitor.send("GET", "/add").json == {"session": {"n": 2}}


DEAD = {
    "x-session-url": "http://127.0.0.1:9/_session",
    "x-session-token": "t",
    "x-session-id": "AAECAwQFBgcICQoLDA0ODw",
}


TRUSTED = {"x-session-url": "http://127.0.0.1:9/_session", "x-session-token": "t", "x-session-data": "{}"}


def call(application, headers, kind="http", path="/add"):
    sent = []

    received = []

    async def receive():
        if received:
            await asyncio.sleep(60)
        received.append(1)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": kind, "method": "GET", "path": path, "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    with contextlib.suppress(Exception):
        asyncio.run(application(scope, receive, send))
    return sent


def test_without_the_api_a_request_fails_with_503():
    with settings(URL=DEAD["x-session-url"]):
        app = make()
        sent = call(app, DEAD)
        assert [one.get("status") for one in sent] == [503, None]
        del DEAD["x-session-id"]
        assert call(app, DEAD)[0]["status"] == 503
        assert call(app, DEAD, path="/untouched")[0]["status"] == 200


def test_requests_from_elsewhere(caplog):
    assert call(make(), {})[0]["status"] == 500
    assert "this request did not come through Cloakroom" in caplog.text
    assert call(make(), {}, path="/untouched")[0]["status"] == 200
    with settings(FALLBACK="stock"):
        assert call(SessionMiddleware(make(), secret_key="key"), {})[0]["status"] == 200


def test_a_websocket_handshake_is_refused():
    with settings(TRUST="network", URL="http://127.0.0.1:8/_session"):
        assert call(make(), DEAD, kind="websocket", path="/chat") == [{"type": "websocket.close", "code": 1011}]
