"""Runs one CGI script for every request (RFC 3875, as much of it as the examples need).

    python3 cgi.py SCRIPT PORT
"""

import http.server
import os
import subprocess
import sys


class Cgi(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, _, query = self.path.partition("?")
        environment = {"PATH": os.environ["PATH"], "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command}
        for name, value in self.headers.items():
            environment["HTTP_" + name.upper().replace("-", "_")] = value
        output = subprocess.run([sys.argv[1]], env=environment, stdout=subprocess.PIPE, check=True).stdout
        head, _, body = output.partition(b"\n\n")
        headers = [line.partition(": ")[::2] for line in head.decode().splitlines()]
        status = next((value for name, value in headers if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Cgi).serve_forever()
