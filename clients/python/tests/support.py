"""Runs the program for the tests of this client, in front of a site in the process of the test."""

import contextlib
import http.client
import os
import pathlib
import queue
import re
import socket
import socketserver
import sys
import tempfile
import threading
import urllib.parse
import wsgiref.simple_server

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
sys.path[:0] = [str(HERE.parent / "src"), str(ROOT / "tests" / "clients"), str(HERE / "sites")]

import kit  # noqa: E402

BINARY = os.environ.get("CLOAKROOM", str(ROOT / "target" / "debug" / "cloakroom"))
MODES = {"api": {}, "headers": {"header_exchange": "partial"}}


class Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(application):
    """Serves a WSGI application on a free port of this process."""
    with wsgiref.simple_server.make_server("127.0.0.1", 0, application, Server, Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@contextlib.contextmanager
def settings(**changed):
    """Sets CLOAKROOM_CLIENT_* variables."""
    names = {f"CLOAKROOM_CLIENT_{name}": value for name, value in changed.items()}
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update({name: str(value) for name, value in names.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def program(site, mode="api", **route):
    """Starts the program in front of a port, and gives it with the settings that its clients need."""
    with tempfile.TemporaryDirectory() as directory:
        with kit.Program.run(BINARY, directory, site, **MODES[mode], **route) as running:
            running.settings = {
                "URL": running.url,
                "SECRETS": kit.secret_file(directory, kit.CLIENT_SECRET) if mode == "headers" else None,
                "SERVICE_TOKEN": kit.secret_file(directory, kit.SERVICE_TOKEN),
            }
            yield running


class Behind:
    """A WSGI or ASGI application behind the program. `make` is called when the settings of the client are set."""

    @classmethod
    @contextlib.contextmanager
    def run(cls, make, mode="api", is_asgi=False, **route):
        made = []

        async def asgi(scope, receive, send):
            await made[0](scope, receive, send)

        def wsgi(environ, start_response):
            return made[0](environ, start_response)

        with serve_asgi(asgi) if is_asgi else serve(wsgi) as port:
            with program(port, mode, **route) as running, settings(**running.settings):
                made.append(make())
                running.site = port
                yield running


@contextlib.contextmanager
def serve_asgi(application):
    """Serves an ASGI application on a free port of this process."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


def submit(visitor, target, page, fields):
    """Submits a form of Django, with the CSRF token of its page."""
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]
    headers = {
        "Cookie": "; ".join(f"{name}={value}" for name, value in visitor.jar.items()),
        "Content-Type": "application/x-www-form-urlencoded",
    }
    connection = http.client.HTTPConnection("127.0.0.1", visitor.port)
    body = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token})
    connection.request("POST", target, body, headers)
    with contextlib.closing(connection):
        response = connection.getresponse()
        text = response.read().decode()
    for line in response.headers.get_all("Set-Cookie") or []:
        name, value = line.split(";")[0].split("=", 1)
        visitor.jar[name] = value
    return kit.Response(response.status, response.headers, text)


class Park:
    """An upstream whose requests wait until they are released, so that a test can use their sessions."""

    def __init__(self):
        self.parked = queue.Queue()

    def __call__(self, environ, start_response):
        released = threading.Event()
        self.parked.put((environ, released))
        released.wait(60)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    def request(self, visitor):
        """Sends a request through the program; returns its environ, and a function that ends it."""
        thread = threading.Thread(target=visitor.send, args=("GET", "/"), kwargs={"expects": None}, daemon=True)
        thread.start()
        environ, released = self.parked.get(timeout=30)

        def end():
            released.set()
            thread.join(30)

        return environ, end
