"""Connections to the session API."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any, Optional

from .errors import Unavailable

CONNECT_TIMEOUT = 1.0
ANSWER_TIMEOUT = 10.0


class Answer:
    """A response of the session API."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise Unavailable(f"the session API answered {self.status} without JSON") from None

    def member(self, name: str) -> str:
        """Returns a text of the problem, e.g. its code."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return ""
        return str(found.get(name, "")) if isinstance(found, dict) else ""


class _NotSent(OSError):
    """The connection was closed before the request was sent whole."""


class Api:
    """The session API. Each thread keeps a connection of its own."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.scheme = parts.scheme
        self.address = urllib.parse.unquote(parts.netloc) if parts.scheme == "http+unix" else parts.netloc
        self.prefix = parts.path.rstrip("/")
        self._local = threading.local()

    def call(self, method: str, path: str, headers: Mapping[str, str], body: Optional[bytes] = None) -> Answer:
        """Makes a call; raises `Unavailable` if there is no answer."""
        try:
            connection, is_kept = self._connection()
            try:
                return self._exchange(connection, method, path, headers, body)
            except _NotSent:
                pass
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                if not is_kept or method != "GET":
                    raise  # a write that was sent may have happened
            # A server may close an idle connection at any time.
            connection, _ = self._connection()
            return self._exchange(connection, method, path, headers, body)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the session API does not answer: {type(error).__name__}: {error}") from error

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, headers: Mapping[str, str],
        body: Optional[bytes],
    ) -> Answer:  # fmt: skip
        is_done = False
        try:
            try:
                connection.request(method, self.prefix + path, body, dict(headers))
            except (ConnectionResetError, BrokenPipeError) as error:
                raise _NotSent(str(error)) from error
            response = connection.getresponse()
            answer = Answer(response.status, response.read())
            is_done = not response.will_close
            return answer
        finally:
            if not is_done:
                connection.close()
                self._local.connection = None

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """Returns the connection of this thread, and whether it was used before."""
        kept: Optional[http.client.HTTPConnection] = getattr(self._local, "connection", None)
        # A process that was forked must not share the connection of its parent.
        if kept and kept.sock and self._local.process == os.getpid():
            if not _is_closed(kept.sock):
                return kept, True
            kept.close()
        connection = self._new_connection()
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT)
        self._local.connection, self._local.process = connection, os.getpid()
        return connection, False

    def _new_connection(self) -> http.client.HTTPConnection:
        if self.scheme == "http+unix":
            return _UnixConnection(self.address)
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        return kind(self.address, timeout=CONNECT_TIMEOUT)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_TIMEOUT)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT)
        self.sock.connect(self.path)


def _is_closed(sock: socket.socket) -> bool:
    """Returns whether the server has closed an idle connection."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])
