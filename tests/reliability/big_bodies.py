"""Transfers bodies of gigabytes through the proxy in both directions, and checks their content and the memory used.

    python3 tests/reliability/big_bodies.py [--binary PATH] [--bytes N]

Prints the figures. The exit code is 1 if a body arrived incomplete or memory grew by 8 MiB or more.
"""

import argparse
import hashlib
import http.server
import pathlib
import socket
import subprocess
import tempfile
import threading
import time

CHUNK = bytes(range(256)) * 4096
LIMIT = 8 << 20


def digest_of(size):
    digest = hashlib.sha256()
    for _ in range(size // len(CHUNK)):
        digest.update(CHUNK)
    return digest.hexdigest()


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def upstream_of(size):
    class Site(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(size if self.path == "/big" else 0))
            self.end_headers()
            if self.path == "/big":
                for _ in range(size // len(CHUNK)):
                    self.wfile.write(CHUNK)

        def do_POST(self):
            digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
            while left:
                data = self.rfile.read(min(left, len(CHUNK)))
                digest.update(data)
                left -= len(data)
            answer = digest.hexdigest().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def resident(pid, name):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/{pid}/status has no {name}")


def get(port, path):
    """Requests a page and returns the SHA-256 of its body."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    head, digest = b"", hashlib.sha256()
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    head, _, data = head.partition(b"\r\n\r\n")
    while data:
        digest.update(data)
        data = connection.recv(1 << 20)
    return digest.hexdigest()


def post(port, size):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n".encode())
    for _ in range(size // len(CHUNK)):
        connection.sendall(CHUNK)
    answer = b""
    while data := connection.recv(65536):
        answer += data
    return answer.rpartition(b"\r\n\r\n")[2].decode()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--binary", default="target/release/cloakroom")
    arguments.add_argument("--bytes", type=int, default=5 << 30)
    arguments = arguments.parse_args()
    size = arguments.bytes // len(CHUNK) * len(CHUNK)
    public, api, admin = free_ports(3)
    upstream = upstream_of(size)
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "cloakroom.toml"
        file.write_text(
            f'[[listen]]\naddress = "127.0.0.1:{public}"\n[api]\naddress = "127.0.0.1:{api}"\n'
            f'[admin]\naddress = "127.0.0.1:{admin}"\n[store]\nurl = "memory:"\n[log]\nlevel = "warn"\naccess = false\n'
            f'[[route]]\nupstream = "http://127.0.0.1:{upstream}"\n'
        )
        proxy = subprocess.Popen([arguments.binary, "run", "--config", file])
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                try:
                    get(public, "/")
                    break
                except OSError:
                    time.sleep(0.05)
            expected, passed = digest_of(size), True
            for name, done in (("down", lambda: get(public, "/big")), ("up", lambda: post(public, size))):
                before, began = resident(proxy.pid, "VmRSS"), time.monotonic()
                whole = done() == expected
                grown = resident(proxy.pid, "VmHWM") - before
                passed &= whole and grown < LIMIT
                print(
                    f"{size / (1 << 30):.1f} GiB {name}: SHA-256 {'equal' if whole else 'NOT equal'}, "
                    f"memory grew by at most {grown / (1 << 20):.1f} MiB from {before / (1 << 20):.1f} MiB, "
                    f"{time.monotonic() - began:.0f} s"
                )
        finally:
            proxy.terminate()
            proxy.wait(60)
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
