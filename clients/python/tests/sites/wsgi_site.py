"""A WSGI application without a framework."""

import json
import time
import urllib.parse

from operations import apply, one, shown

import cloakroom.wsgi


def application(environ, start_response):
    path = environ["PATH_INFO"]
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"], keep_blank_values=True))
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or b"[]"
    session, operations = environ["cloakroom.session"], json.loads(body)
    found = {"ok": True}
    if path == "/read":
        found = shown(session, ())
    elif path == "/get":
        found = one(session, query["key"])
    elif path == "/id":
        found = {"id": session.id}
    elif path == "/who":
        found = {"principal": session.principal}
    elif path == "/login":
        session.login(query["name"])
        apply(session, operations)
    elif path == "/logout":
        session.logout()
    elif path == "/regenerate":
        session.regenerate()
    elif path == "/flush":
        session.destroy()
        apply(session, operations)
    elif path == "/change":
        return change(session, operations, query, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]


def change(session, operations, query, start_response):
    start_response(f"{query.get('status', 200)} Status", [("Content-Type", "application/json")])
    if "stream" in query:
        return stream(session, operations)
    if "sleep" in query:
        dict(session)
        time.sleep(int(query["sleep"]) / 1000)
    apply(session, operations)
    if "save" in query:
        session.save()
    return [b'{"ok": true}']


def stream(session, operations):
    yield b'{"ok":'
    apply(session, operations)
    yield b" true}"


def make(is_stock):
    return cloakroom.wsgi.Middleware(application)
