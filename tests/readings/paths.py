"""Parses each path of a JSON list on standard input as Python's servers do, and as models of other servers do."""

import http.server
import io
import json
import os.path
import posixpath
import re
import sys
import urllib.parse
import wsgiref.simple_server


class Socket:
    def __init__(self, path):
        self.request = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode("latin-1")

    def makefile(self, *_):
        return io.BytesIO(self.request)

    def sendall(self, _):
        pass


def parsed(handler_class, path):
    """Returns the handler of a server that has read a request for the path."""

    class Handler(handler_class):
        def handle(self):
            self.raw_requestline = self.rfile.readline()
            assert self.parse_request()

        def log_message(self, *_):
            pass

    class Server:
        base_environ = {}

    return Handler(Socket(path), ("127.0.0.1", 1), Server())


def wsgi(path):
    return parsed(wsgiref.simple_server.WSGIRequestHandler, path).get_environ()["PATH_INFO"]


def files(path):
    handler = parsed(http.server.SimpleHTTPRequestHandler, path)
    return handler.translate_path(handler.path).removeprefix(os.getcwd()) or "/"


def asgi(path):
    """uvicorn: scope["path"]."""
    return urllib.parse.unquote(path.split("?")[0])


def nginx(path):
    """ngx_http_parse_complex_uri: decodes, merges slashes and resolves dots, once."""
    path = urllib.parse.unquote(path, "latin-1")
    kept = []
    for segment in re.sub("/+", "/", path).split("/")[1:]:
        if segment == "..":
            if not kept:
                return None
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


def java(path):
    """Tomcat: removes parameters, decodes, then normalizes."""
    path = re.sub(";[^/]*", "", path)
    path = re.sub("/+", "/", urllib.parse.unquote(path, "latin-1").replace("\\", "/"))
    return posixpath.normpath(path)


def java_as_it_is(path):
    """getRequestURI() without parameters, as security filters use it."""
    return re.sub(";[^/]*", "", path)


paths = json.load(sys.stdin)
models = [wsgi, files, asgi, nginx, java, java_as_it_is]
print(json.dumps({model.__name__: [model(path) for path in paths] for model in models}))
