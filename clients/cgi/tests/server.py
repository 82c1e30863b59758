"""Runs CGI scripts (RFC 3875, as much of it as the tests need).

    python3 server.py PORT SCRIPT [SHELL]
"""

import http.server
import os
import subprocess
import sys

PORT, SCRIPT, SHELL = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
PASSED = ["PATH", "CLOAKROOM_CLIENT_URL", "http_proxy"]


class Cgi(http.server.BaseHTTPRequestHandler):
    def run(self):
        path, _, query = self.path.partition("?")
        environment = {name: os.environ[name] for name in PASSED if name in os.environ}
        environment |= {"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command}
        for name in set(self.headers):
            environment["HTTP_" + name.upper().replace("-", "_")] = ", ".join(self.headers.get_all(name))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        environment["CONTENT_LENGTH"] = str(len(body))
        command = [*SHELL, SCRIPT]
        output = subprocess.run(command, env=environment, input=body, stdout=subprocess.PIPE, check=True).stdout
        head, _, content = output.replace(b"\r\n", b"\n", 10).partition(b"\n\n")
        headers = [line.partition(": ")[::2] for line in head.decode().splitlines()]
        self.send_response(int(dict(headers).get("Status", "200 OK").split()[0]))
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = run

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


Server(("127.0.0.1", PORT), Cgi).serve_forever()
