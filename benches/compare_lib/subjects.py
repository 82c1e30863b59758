"""The subjects of the comparison: how each is configured and started."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from . import processes, tools

SITES = Path(__file__).parent / "sites"
KEY = "dGhlIGtleSBvZiB0aGUgYmVuY2htYXJrLCA0MyBsb24"


@dataclass
class Target:
    """A started subject, and the request that is made of it."""

    name: str
    process: subprocess.Popen
    port: int
    path: str = "/"
    tls: bool = False
    cookie: str | None = None
    # A file of cookies to send in turn, instead of one.
    cookies: str | None = None
    # Whether the upstream must see a session in each request; `None` if it sees none of the requests.
    has_session: bool | None = False
    redis: processes.Redis | None = None
    # The samples by number of connections.
    samples: dict = field(default_factory=dict)
    # Why there are none.
    failure: str | None = None

    @property
    def url(self):
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}{self.path}"


def nginx(bed, name="nginx, plain proxy", tls="", workers=1, access_log=False):
    """Starts nginx as a plain proxy. `tls` is "", "ssl" or "ssl http2"."""
    port = processes.free_port()
    certificate = "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.3;".format(
        *bed.certificate()) if tls else ""
    path = bed.write("nginx.conf", f"""
        daemon off; master_process {"on" if workers > 1 else "off"}; worker_processes {workers};
        pid {bed.path("nginx.pid")}; error_log /dev/null crit;
        events {{ worker_connections 4096; }}
        http {{
            access_log {"/dev/stdout" if access_log else "off"};
            client_body_temp_path {bed.path("body")}; proxy_temp_path {bed.path("proxy")};
            keepalive_requests 1000000000;
            upstream site {{
                server 127.0.0.1:{bed.upstream_port}; keepalive 512; keepalive_requests 1000000000;
            }}
            server {{
                listen 127.0.0.1:{port} {tls} backlog=1024; {certificate}
                location / {{
                    proxy_pass http://site; proxy_http_version 1.1; proxy_set_header Connection "";
                    proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;
                }}
            }}
        }}""")
    process = bed.proxy([tools.program("nginx"), "-c", path, "-e", "/dev/null"], **log_reader(bed, access_log))
    processes.wait_for(port, process)
    return Target(name, process, port, tls=bool(tls))


def haproxy(bed, name="HAProxy, plain proxy", threads=1):
    port = processes.free_port()
    path = bed.write("haproxy.cfg", f"""
global
    nbthread {threads}
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option forwardfor
    http-reuse always
frontend site
    bind 127.0.0.1:{port} backlog 1024
    default_backend upstream
backend upstream
    server upstream 127.0.0.1:{bed.upstream_port}
""")
    process = bed.proxy([tools.program("haproxy"), "-db", "-f", path])
    processes.wait_for(port, process)
    return Target(name, process, port)


def cloakroom(bed, name, store="memory:", path="/", cache=False, access_log=False, routes=0, tls=False, redis=None,
              under=()):
    """Starts Cloakroom, creates a session, and returns the target that requests `path` with it.

    The routes are / and /api with a session, /data and /increment with header exchange, and /off without a session.
    With `routes`, there are that many instead, none with a session. `under` is a command that runs the program.
    """
    port, api, admin = processes.free_port(), processes.free_port(), processes.free_port()
    state = bed.path(f"state-{port}")
    os.mkdir(state)
    upstream = f'upstream = "http://127.0.0.1:{bed.upstream_port}"'

    def route(path, *keys):
        return "\n".join(["[[route]]", f'path = "{path}"', upstream, *keys])

    exchange, off = "header_exchange = true", 'session = "off"'
    if routes:
        table = [route("/", off), *(route(f"/section-{number}", off) for number in range(1, routes))]
    else:
        table = [route("/"), route("/data", exchange), route("/increment", exchange), route("/begin", exchange),
                 route("/off", off)]
    certificate = 'tls = {{ certificate = "{}", key = "{}" }}'.format(*bed.certificate()) if tls else ""
    url = f"redis://127.0.0.1:{redis.port}/" if redis else store
    config = bed.write(f"cloakroom-{port}.toml", f"""
[[listen]]
address = "127.0.0.1:{port}"
{certificate}
[api]
address = "127.0.0.1:{api}"
[admin]
address = "127.0.0.1:{admin}"
[session]
keys = ["{KEY}"]
[store]
url = "{url}"
timeout = "5s"
{'cache = { max_bytes = "64MiB" }' if cache else ""}
[log]
access = {"true" if access_log else "false"}
level = "{"info" if access_log else "warn"}"
""" + "\n".join(table) + "\n")
    process = bed.proxy([*under, tools.CLOAKROOM, "run", "--config", config], env={"STATE_DIRECTORY": state},
                        **log_reader(bed, access_log))
    processes.wait_for(port, process, seconds=60)
    cookie = None if routes else processes.cookie(processes.connect(port, tls))
    return Target(name, process, port, path, tls, cookie, has_session=not routes and path != "/off", redis=redis)


def log_reader(bed, access_log):
    """Returns the streams of a process whose log another process reads, as a service manager does."""
    if not access_log:
        return {}
    reader = bed.start(["cat"], bed.other_cpus, stdin=subprocess.PIPE)
    return {"stdout": reader.stdin, "stderr": reader.stdin}


def express(bed, name, path, redis):
    port = processes.free_port()
    process = bed.proxy([tools.program("node"), SITES / "express.cjs", port, redis.port],
                        env={"NODE_PATH": str(tools.node_modules()), "NODE_ENV": "production"})
    return site(name, process, port, path, redis)


def django(bed, name, path, redis):
    port = processes.free_port()
    process = bed.proxy([tools.venv() / "bin/gunicorn", "--workers=1", "--threads=8", "--keep-alive=60",
                         f"--chdir={SITES}", f"--bind=127.0.0.1:{port}", "django_site:application"],
                        env={"REDIS_PORT": str(redis.port), "PYTHONDONTWRITEBYTECODE": "1"})
    return site(name, process, port, path, redis)


def site(name, process, port, path, redis):
    processes.wait_for(port, process, seconds=30)
    cookie = None if path == "/plain" else processes.cookie(processes.connect(port))
    return Target(name, process, port, path, cookie=cookie, has_session=None, redis=redis)
