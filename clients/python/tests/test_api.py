"""Connections to the session API."""

import contextlib
import socket
import threading
import time

import pytest
import support  # noqa: F401

from cloakroom import Unavailable, api

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Listener:
    """An API of which each connection does what its script says: answer, or close without an answer."""

    def __init__(self, *scripts, family=socket.AF_INET, address=("127.0.0.1", 0)):
        self.scripts, self.requests = list(scripts), []
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.bind(address)
        self.socket.listen()
        threading.Thread(target=self.run, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}/_session"

    def run(self):
        with contextlib.suppress(OSError):
            for script in self.scripts:
                connection, _ = self.socket.accept()
                threading.Thread(target=self.play, args=(connection, script), daemon=True).start()

    def play(self, connection, script):
        with connection:
            for action in script:
                if action == "close now":
                    return
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (part := connection.recv(65536)):
                        return
                    head += part
                self.requests.append(head.split(b"\r\n")[0].decode())
                if action == "answer":
                    connection.sendall(ANSWER)
                elif action == "wait":
                    time.sleep(2)
                else:
                    return


@pytest.fixture
def calls():
    """Makes an `Api` for a script, and closes its listener."""
    with contextlib.ExitStack() as stack:

        def make(*scripts):
            listener = Listener(*scripts)
            stack.enter_context(contextlib.closing(listener.socket))
            return api.Api(listener.url), listener

        yield make


def test_connections_are_kept(calls):
    client, listener = calls(["answer", "answer", "answer"])
    for _ in range(3):
        assert client.call("GET", "", {}).status == 200
    assert listener.requests == ["GET /_session HTTP/1.1"] * 3


def test_threads_have_connections_of_their_own(calls):
    client, listener = calls(["answer"], ["answer"])
    client.call("GET", "", {})
    thread = threading.Thread(target=client.call, args=("GET", "", {}))
    thread.start()
    thread.join()
    assert len(listener.requests) == 2


def test_a_kept_connection_that_was_closed_is_replaced(calls):
    client, listener = calls(["answer", "close now"], ["answer"])
    client.call("GET", "", {})
    time.sleep(0.1)
    assert client.call("PATCH", "", {}, b"{}").status == 200
    assert len(listener.requests) == 2


def test_a_read_is_repeated_once_on_a_kept_connection(calls):
    client, listener = calls(["answer", "close"], ["answer"])
    client.call("GET", "", {})
    assert client.call("GET", "", {}).status == 200
    assert len(listener.requests) == 3


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_write_that_was_sent_is_not_repeated(calls, method):
    client, listener = calls(["answer", "close"], ["answer"])
    client.call("GET", "", {})
    with pytest.raises(Unavailable):
        client.call(method, "", {}, b"{}")
    assert len(listener.requests) == 2


def test_a_call_on_a_new_connection_is_not_repeated(calls):
    client, listener = calls(["close"], ["answer"])
    with pytest.raises(Unavailable):
        client.call("PATCH", "", {}, b"{}")
    assert len(listener.requests) == 1


def test_a_call_without_an_answer_is_not_repeated(calls, monkeypatch):
    monkeypatch.setattr(api, "ANSWER_TIMEOUT", 0.2)
    client, listener = calls(["answer", "wait"], ["answer"])
    client.call("GET", "", {})
    with pytest.raises(Unavailable):
        client.call("PATCH", "", {}, b"{}")
    assert len(listener.requests) == 2


def test_no_listener_is_an_error_at_once(calls):
    client, listener = calls([])
    listener.socket.close()
    started = time.monotonic()
    with pytest.raises(Unavailable):
        client.call("GET", "", {})
    assert time.monotonic() - started < 2


def test_unix_sockets(tmp_path):
    listener = Listener(["answer"], family=socket.AF_UNIX, address=str(tmp_path / "api.sock"))
    with contextlib.closing(listener.socket):
        path = str(tmp_path / "api.sock").replace("/", "%2F")
        assert api.Api(f"http+unix://{path}/_session").call("GET", "/policy", {}).status == 200
    assert listener.requests == ["GET /_session/policy HTTP/1.1"]
