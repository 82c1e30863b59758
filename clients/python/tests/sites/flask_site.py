"""A Flask application with Flask-Login."""

import os
import time

import flask_login
import flask_session
import redis
from flask import Flask, Response, request, session
from operations import apply, one, shown

from cloakroom.flask import Cloakroom

PRIVATE = ("_user_id", "_fresh", "_id", "_permanent", "_flashes", "_remember")
app = Flask(__name__)
login_manager = flask_login.LoginManager(app)
login_manager.session_protection = "strong"


class User(flask_login.UserMixin):
    """A user whose primary key is not the name."""

    def __init__(self, name):
        self.id, self.username = f"key-of-{name}", name


@login_manager.user_loader
def load_user(key):
    return User(key.removeprefix("key-of-"))


@app.get("/untouched")
def untouched():
    return {"ok": True}


@app.get("/read")
def read():
    return shown(session, PRIVATE)


@app.get("/get")
def get():
    return one(session, request.args["key"])


@app.get("/id")
def show_id():
    return {"id": session.sid}


@app.get("/who")
def who():
    user = flask_login.current_user
    return {"principal": user.username if user.is_authenticated else None}


@app.post("/login")
def login():
    flask_login.login_user(User(request.args["name"]))
    return {"ok": True}


@app.post("/logout")
def logout():
    flask_login.logout_user()
    return {"ok": True}


@app.post("/regenerate")
def regenerate():
    app.session_interface.regenerate(session)
    return {"ok": True}


@app.post("/flush")
def flush():
    session.clear()
    apply(session, request.json)
    return {"ok": True}


@app.post("/change")
def change():
    operations = request.json
    if "stream" in request.args:
        return Response(stream(session._get_current_object(), operations), mimetype="application/json")
    if "sleep" in request.args:
        dict(session)
        time.sleep(int(request.args["sleep"]) / 1000)
    apply(session, operations)
    session.modified = True
    if "save" in request.args:
        session.save()
    return {"ok": True}, int(request.args.get("status", 200))


def stream(session, operations):
    yield '{"ok":'
    apply(session, operations)
    yield " true}"


def make(is_stock):
    app.secret_key = "key"
    if "REDIS_PORT" in os.environ:
        app.config.update(SESSION_TYPE="redis", SESSION_REDIS=redis.Redis(port=int(os.environ["REDIS_PORT"])))
        flask_session.Session(app)
    elif not is_stock:
        Cloakroom(app)
    return app
