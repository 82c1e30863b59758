# python3 site.py 3000
import html, http.server, json, sys, urllib.parse, urllib.request


class Site(http.server.BaseHTTPRequestHandler):
    def session(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        call = urllib.request.Request(self.headers["X-Session-Url"] + path, data, method=method)
        call.add_header("X-Session-Token", self.headers["X-Session-Token"])
        return json.loads(urllib.request.urlopen(call).read() or "null")

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/login":  # check the password first
            self.session("PATCH", "", {"principal": urllib.parse.parse_qs(query)["name"][0]})
        elif path == "/logout":
            self.session("DELETE", "")
        else:
            visits = self.session("POST", "/values/visits/increment")
            name = urllib.parse.unquote(self.headers.get("X-Session-Principal", "stranger"))
            self.send_response(200)
            self.end_headers()
            return self.wfile.write(f"Hello {html.escape(name)}, visit {visits}\n".encode())
        self.send_response(303)
        self.send_header("Location", "/")
        self.end_headers()


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Site).serve_forever()
