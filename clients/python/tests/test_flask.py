"""Flask and Flask-Login behind the program."""

import datetime
import io
import json
import socket
import time
import uuid

import flask
import flask_login
import markupsafe
import pytest
from flask import Flask, jsonify, session
from support import Behind, kit, settings
from werkzeug.middleware.proxy_fix import ProxyFix

from cloakroom import Client, Settings
from cloakroom.errors import PAGES
from cloakroom.flask import Cloakroom, FlaskSession

VALUES = {
    "tuple": (1, ("a",)),
    "bytes": b"\x00\xff",
    "uuid": uuid.UUID(int=5),
    "datetime": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc),
    "markup": markupsafe.Markup("<b>"),
    "list": [(1, 2), {"when": uuid.UUID(int=6)}],
    "tag": {" t": [1]},
    "plain": {"a": [1, {"b": None}]},
}


class User(flask_login.UserMixin):
    def __init__(self, key):
        self.id, self.username = key, {"1": "ada", "2": "bob"}[key]


def make_app(**config):
    app = Flask(__name__)
    app.secret_key = "key"
    app.config.update(config)
    login_manager = flask_login.LoginManager(app)
    login_manager.session_protection = "strong"
    login_manager.user_loader(User)

    @app.get("/set")
    def set_values():
        session.update(VALUES)
        return "ok"

    @app.get("/get")
    def get_values():
        assert dict(session) == VALUES, dict(session)
        assert {key: type(value) for key, value in session.items()} == {k: type(v) for k, v in VALUES.items()}
        return "ok"

    @app.get("/json")
    def as_json():
        return jsonify(session._get_current_object())

    @app.get("/add")
    def add():
        session.setdefault("basket", []).append(len(session["basket"]))
        return {"basket": session["basket"], "id": session.sid, "new": session.new}

    @app.get("/login/<key>")
    def login(key):
        flask_login.login_user(User(key), remember=flask.request.args.get("remember") == "1")
        return "ok"

    @app.get("/logout")
    def logout():
        flask_login.logout_user()
        return "ok"

    @app.get("/who")
    def who():
        user = flask_login.current_user
        return {"user": user.username if user.is_authenticated else None, "basket": session.get("basket")}

    @app.get("/fresh")
    @flask_login.fresh_login_required
    def fresh():
        return "ok"

    @app.get("/permanent/<int:value>")
    def permanent(value):
        session.permanent = bool(value)
        return "ok"

    @app.get("/flash")
    def flash():
        flask.flash("Saved")
        return flask.redirect("/flashed")

    @app.get("/flashed")
    def flashed():
        return {"messages": flask.get_flashed_messages()}

    @app.get("/other-site")
    def other_site():
        session.login("carl")
        return "ok"

    @app.get("/clear")
    def clear():
        session.clear()
        session["user"] = "tutorial"
        return "ok"

    @app.get("/file")
    def file():
        session["file"] = 1
        return flask.send_file(io.BytesIO(b"content"), "text/plain")

    @app.get("/scheme")
    def scheme():
        return {"url": flask.url_for("scheme", _external=True)}

    @app.get("/error")
    def error():
        session["error"] = 1
        raise KeyError("error")

    return app


def with_cloakroom(**config):
    app = make_app(**config)
    Cloakroom(app)
    return app


@pytest.fixture
def site(mode):
    with Behind.run(with_cloakroom, mode) as running:
        yield running


def only_session(running):
    [found] = running.service("GET", "").json["sessions"]
    return running.service("GET", f"/{found['id']}").json


def test_tagged_values_round_trip(site):
    visitor = site.visitor()
    visitor.send("GET", "/set")
    visitor.send("GET", "/get")
    values = only_session(site)["values"]
    assert values["plain"] == VALUES["plain"]
    assert values["tag"] == VALUES["tag"]
    assert values["tuple"] == {"$cloakroom": {"flask": {" t": [1, {" t": ["a"]}]}}}
    assert values["bytes"] == {"$cloakroom": {"bytes": "AP8="}}


FOREIGN = {
    "markup": {" m": "<img src=x onerror=alert(1)>"},
    "nested": [{"$cloakroom": {"flask": {" m": "<img>"}}}, {"a": {"$cloakroom": {"flask": {" m": "<img>"}}}}],
    "uuid": {" u": "5"},
    "list": [{" d": "x"}],
    "escaped": {"$cloakroom": {"json": {"$cloakroom": {"flask": {" m": "<img>"}}}}},
    "broken": {"$cloakroom": {"flask": {" u": "5"}}},
    "bytes": {"$cloakroom": {"bytes": "a"}},
    "php": {"$cloakroom": {"php": "x"}},
}


def test_values_of_other_sites_are_not_read_as_tags(caplog):
    headers = {
        "x-session-token": "t",
        "x-session-url": Settings.url,
        "x-session-id": "AAECAwQFBgcICQoLDA0ODw",
        "x-session-data": json.dumps(FOREIGN),
    }
    found = Client(Settings(trust="network")).session(headers.get, FlaskSession)
    for key in ["markup", "nested", "uuid", "list", "broken", "bytes", "php"]:
        assert found[key] == FOREIGN[key]
    assert type(found["markup"]) is dict
    assert found["escaped"] == {"$cloakroom": {"flask": {" m": "<img>"}}}
    assert caplog.text.count("cannot be read") == 2
    assert found.patch() is None, "what cannot be read is kept as it is"


def test_a_stream_that_is_left_early_is_written(mode):
    def make():
        app = with_cloakroom()

        @app.get("/stream")
        def stream():
            kept = session._get_current_object()

            def parts():
                yield "first"
                kept["late"] = 1
                yield "x" * 10_000_000

            return flask.Response(parts())

        return app

    with Behind.run(make, mode) as running:
        visitor = running.visitor()
        visitor.send("GET", "/add")
        cookie = "; ".join(f"{name}={value}" for name, value in visitor.jar.items())
        with socket.create_connection(("127.0.0.1", visitor.port)) as left:
            left.sendall(f"GET /stream HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n".encode())
            left.recv(10)
        for _ in range(100):
            if "late" in only_session(running)["values"]:
                return
            time.sleep(0.05)
        raise AssertionError("the change is lost")


def test_flash_messages_are_plain_lists():
    session = Client(Settings()).session({}.get, FlaskSession)
    assert session.to_json([("message", "Saved")], "_flashes") == [["message", "Saved"]]
    assert session.from_json([["message", "Saved"]], "_flashes") == [("message", "Saved")]
    flashes = [("message", markupsafe.Markup("<b>"))]
    assert session.from_json(session.to_json(flashes, "_flashes"), "_flashes") == flashes


def test_a_page_that_is_refused_is_replaced_as_a_whole():
    with settings(URL="http://127.0.0.1:9/_session", TRUST="network"):
        client = with_cloakroom(CLOAKROOM_CLIENT_TRUST="network").test_client()
    headers = {"X-Session-Url": "http://127.0.0.1:9/_session", "X-Session-Token": "t"}
    for target in ["/login/1?remember=1", "/flash", "/file"]:
        response = client.get(target, headers=headers)
        assert (response.status_code, response.get_data(True)) == (503, PAGES[503][1])
        assert dict(response.headers) == {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(PAGES[503][1])),
            "Cache-Control": "no-store",
        }


def test_json_of_a_session_that_was_not_read(site):
    visitor = site.visitor()
    visitor.send("GET", "/add")
    assert visitor.send("GET", "/json").json == {"basket": [0]}


def test_changes_inside_of_values_are_kept(site):
    visitor = site.visitor()
    found = [visitor.send("GET", "/add").json for _ in range(3)]
    assert [one["basket"] for one in found] == [[0], [0, 1], [0, 1, 2]]
    assert len({one["id"] for one in found}) == 1
    assert [one["new"] for one in found] == [True, False, False]


def test_flask_sets_no_cookie(site):
    visitor = site.visitor()
    response = visitor.send("GET", "/add")
    assert [line.split("=")[0] for line in response.headers.get_all("Set-Cookie")] == ["id"]
    assert response.headers["Vary"] == "Cookie"


def test_flash_messages(site):
    visitor = site.visitor()
    visitor.send("GET", "/flash", expects=302)
    assert visitor.send("GET", "/flashed").json == {"messages": ["Saved"]}
    assert visitor.send("GET", "/flashed").json == {"messages": []}


def test_reading_flash_messages_creates_no_session(site):
    visitor = site.visitor()
    visitor.send("GET", "/flashed")
    assert not visitor.jar


def test_log_in_sets_the_user_name(site):
    visitor = site.visitor()
    visitor.send("GET", "/add")
    before = dict(visitor.jar)
    visitor.send("GET", "/login/1")
    assert visitor.jar != before
    assert site.principals() == ["ada"]
    assert visitor.send("GET", "/who").json == {"user": "ada", "basket": [0]}
    visitor.send("GET", "/fresh")


def test_log_out_removes_the_principal_and_keeps_the_basket(site):
    visitor = site.visitor()
    visitor.send("GET", "/add")
    visitor.send("GET", "/login/1")
    visitor.send("GET", "/logout")
    assert site.principals() == [None]
    assert visitor.send("GET", "/who").json == {"user": None, "basket": [0]}
    visitor.send("GET", "/login/2")
    assert visitor.send("GET", "/who").json == {"user": "bob", "basket": None}, "the basket reached the next user"
    visitor.send("GET", "/fresh")


def test_log_in_over_another_user(site):
    visitor = site.visitor()
    visitor.send("GET", "/login/1")
    visitor.send("GET", "/add")
    visitor.send("GET", "/login/2")
    assert visitor.send("GET", "/who").json == {"user": "bob", "basket": None}
    assert site.principals() == ["bob"]
    visitor.send("GET", "/fresh")


def test_a_remembered_user_is_a_principal(site):
    visitor = site.visitor()
    visitor.send("GET", "/login/1", remember="1")
    del visitor.jar["id"]
    assert visitor.send("GET", "/who").json["user"] == "ada"
    assert "id" in visitor.jar
    assert site.principals().count("ada") == 2
    visitor.send("GET", "/logout")
    assert "remember_token" not in visitor.jar
    assert site.principals().count("ada") == 1


def test_session_protection_removes_the_principal(site):
    visitor = site.visitor()
    visitor.send("GET", "/login/1")
    stolen = visitor.copy()
    cookies = "; ".join(f"{name}={value}" for name, value in stolen.jar.items())
    response = kit.fetch(site.public, "GET", "/who", headers={"Cookie": cookies, "User-Agent": "another"})
    assert response.json["user"] is None
    assert site.principals() == [None]


def test_session_protection_leaves_the_log_in_of_another_site(site):
    visitor = site.visitor()
    visitor.send("GET", "/add")
    visitor.send("GET", "/other-site")  # without the keys of Flask-Login
    assert visitor.send("GET", "/who").json == {"user": None, "basket": [0]}
    assert site.principals() == ["carl"]


def test_clear_ends_the_session(site):
    visitor = site.visitor()
    visitor.send("GET", "/login/1")
    before = only_session(site)["id"]
    visitor.send("GET", "/clear")
    found = only_session(site)
    assert found["values"] == {"user": "tutorial"}
    assert found["principal"] is None
    assert found["id"] != before


def test_permanent_is_the_expiry(mode):
    with Behind.run(lambda: with_cloakroom(PERMANENT_SESSION_LIFETIME=3600), mode) as site:
        visitor = site.visitor()
        visitor.send("GET", "/permanent/1")
        assert only_session(site)["expiry"] == {"idle": 3600}
        visitor.send("GET", "/add")
        assert only_session(site)["expiry"] == {"idle": 3600}
        visitor.send("GET", "/permanent/0")
        assert only_session(site)["expiry"] is None


def test_files_are_sent(site):
    visitor = site.visitor()
    assert visitor.send("GET", "/file").text == "content"
    assert only_session(site)["values"] == {"file": 1}


def test_an_error_page_keeps_the_session(site):
    visitor = site.visitor()
    visitor.send("GET", "/error", expects=500)
    assert only_session(site)["values"] == {"error": 1}


def test_proxy_fix(mode):
    def make():
        app = with_cloakroom()
        app.wsgi_app = ProxyFix(app.wsgi_app, x_proto=1, x_host=1)
        return app

    with Behind.run(make, mode) as site:
        assert site.visitor().send("GET", "/scheme").json["url"] == f"http://127.0.0.1:{site.public}/scheme"
        if mode == "api":  # the proof is not needed, so the site can be asked directly
            headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "example.org"}
            response = kit.fetch(site.site, "GET", "/scheme", headers=headers)
            assert response.json["url"] == "https://example.org/scheme"


def test_settings_of_the_application(mode):
    with pytest.raises(ValueError, match="CLOAKROOM_CLIENT_URL is not a URL"):
        with_cloakroom(CLOAKROOM_CLIENT_URL="nowhere")


def test_without_the_api_a_request_fails_with_503():
    url = "http://127.0.0.1:9/_session"
    client = with_cloakroom(CLOAKROOM_CLIENT_URL=url).test_client()
    headers = {"X-Session-Url": url, "X-Session-Token": "t", "X-Session-Id": "AAECAwQFBgcICQoLDA0ODw"}
    assert client.get("/add", headers=headers).status_code == 503
    assert client.get("/who", headers=headers).status_code == 503
    del headers["X-Session-Id"]
    assert client.get("/clear", headers=headers).status_code == 503


def test_requests_from_elsewhere_have_one_line(caplog):
    assert with_cloakroom().test_client().get("/who").status_code == 500
    assert [record.message for record in caplog.records] == [
        "this request did not come through Cloakroom: it has no X-Session-Token"
    ]


def test_the_fallback_is_the_cookie_of_flask():
    with settings(FALLBACK="stock"):
        client = with_cloakroom().test_client()
    assert [client.get("/flash").status_code, client.get("/flashed").json] == [302, {"messages": ["Saved"]}]
    with client.session_transaction() as stored:
        stored["basket"] = [1]
    assert client.get("/who").json["basket"] == [1]
