"""The scenes of the comparison: which subjects are measured, in which situation."""

from dataclasses import dataclass
from typing import Callable

from . import fill as fills
from . import load, processes
from .subjects import cloakroom, django, express, haproxy, nginx

# What a browser sends with a page: 20 fields, and cookies of others.
BROWSER = [
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Encoding: gzip, deflate, br, zstd", "Accept-Language: en-GB,en;q=0.9,de;q=0.8", "Cache-Control: max-age=0",
    "DNT: 1", 'Sec-CH-UA: "Chromium";v="142", "Not_A Brand";v="99"', "Sec-CH-UA-Mobile: ?0",
    'Sec-CH-UA-Platform: "Linux"', "Sec-Fetch-Dest: document", "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Site: same-origin", "Sec-Fetch-User: ?1", "Sec-GPC: 1", "Upgrade-Insecure-Requests: 1",
    "Referer: https://shop.example.org/basket?step=2", "Priority: u=0, i",
    'If-None-Match: W/"5f3-18c2a7"',
]  # with Host and Cookie, which wrk adds, 20
FOREIGN_COOKIES = "; ".join([
    "_ga=GA1.1.1234567890.1732000000", "_gid=GA1.1.987654321.1732000000", "consent=analytics%3D0%26ads%3D0",
    "theme=dark", "_fbp=fb.1.1732000000000.1234567890",
])


@dataclass
class Scene:
    """Subjects that are measured in turn. The first is the one that the others are compared with."""

    title: str
    subjects: list[tuple[str, Callable]]
    connections: tuple[int, ...] = (32,)
    headers: tuple[str, ...] = ()
    cookies: str = ""
    load: Callable = load.wrk
    pinned: bool = True

    def bed(self):
        if self.pinned:
            return processes.Testbed()
        return processes.Testbed(processes.BOTH, processes.BOTH)


def subject(name, start, *arguments, redis=False, **options):
    """Returns the name of a subject and the function that starts it on a test bed."""

    def begin(bed):
        more = {"redis": bed.redis()} if redis else {}
        return start(bed, name, *arguments, **options, **more)

    return name, begin


def plain(**options):
    return subject("nginx, plain proxy", nginx, **options)


def scenes(quick):
    """Returns all scenes. The quick ones have fewer sessions in the store."""
    used, stored = (500, 20_000) if quick else (2_000, 1_000_000)
    # The memory store has room for 555,000 of these, and would evict those that are requested.
    in_memory = min(stored, 500_000)
    return [
        Scene("Proxies and sessions", [
            plain(),
            subject("HAProxy, plain proxy", haproxy),
            subject('session = "off"', cloakroom, path="/off"),
            subject("memory", cloakroom),
            subject("SQLite", cloakroom, "sqlite:cloakroom.db"),
            subject("SQLite, cached", cloakroom, "sqlite:cloakroom.db", cache=True),
            subject("Redis", cloakroom, redis=True),
            subject("Redis, cached", cloakroom, cache=True, redis=True),
            subject("header exchange, read: Redis", cloakroom, path="/data", redis=True),
            subject("header exchange, read: Redis, cached", cloakroom, path="/data", cache=True, redis=True),
            subject("header exchange, increment: Redis", cloakroom, path="/increment", redis=True),
            subject("API call, read: Redis", cloakroom, path="/api/read", redis=True),
            subject("API call, increment: Redis", cloakroom, path="/api/increment", redis=True),
        ], connections=(32, 1, 256)),
        Scene("Access log on", [
            plain(),
            subject("nginx, access log", nginx, access_log=True),
            subject('session = "off", access log', cloakroom, path="/off", access_log=True),
            subject("Redis, cached, access log", cloakroom, cache=True, access_log=True, redis=True),
        ]),
        Scene("Headers of a browser: 20 fields, 5 foreign cookies", [
            plain(),
            subject('browser: session = "off"', cloakroom, path="/off"),
            subject("browser: Redis", cloakroom, redis=True),
            subject("browser: Redis, cached", cloakroom, cache=True, redis=True),
        ], headers=tuple(BROWSER), cookies=FOREIGN_COOKIES),
        Scene("TLS 1.3, HTTP/1.1", [
            plain(tls="ssl"),
            subject('TLS: session = "off"', cloakroom, path="/off", tls=True),
            subject("TLS: Redis, cached", cloakroom, cache=True, tls=True, redis=True),
        ]),
        Scene("TLS 1.3, HTTP/2: 8 connections of 16 streams", [
            plain(tls="ssl http2"),
            subject('HTTP/2: session = "off"', cloakroom, path="/off", tls=True),
            subject("HTTP/2: Redis, cached", cloakroom, cache=True, tls=True, redis=True),
        ], connections=(8,), load=load.h2load),
        Scene("Routes", [
            plain(),
            subject("1 route", cloakroom, routes=1),
            subject("1,000 routes", cloakroom, path="/section-500", routes=1000),
        ]),
        Scene(f"Sessions in the store, {used:,} of them requested in turn", [
            populated("nginx, plain proxy", lambda bed, _: nginx(bed), None, 1, 1),
            *(populated(f"{store}: {count:,} session{'s' if count > 1 else ''}", start, fill, count, requested)
              for store, many, fill, start in [
                  ("memory", in_memory, fills.memory, lambda bed, name: cloakroom(bed, name)),
                  ("SQLite", stored, fills.sqlite, lambda bed, name: cloakroom(bed, name, "sqlite:cloakroom.db")),
                  ("Redis", stored, fills.redis, lambda bed, name: cloakroom(bed, name, redis=bed.redis()))]
              for count, requested in [(1, 1), (many, used)]),
        ]),
        Scene("Two workers on both CPUs, unpinned, 256 connections", [
            plain(workers=2),
            subject("two workers: HAProxy", haproxy, threads=2),
            subject('two workers: session = "off"', cloakroom, path="/off"),
            subject("two workers: Redis, cached", cloakroom, cache=True, redis=True),
            subject("two workers: Redis", cloakroom, redis=True),
        ], connections=(256,), pinned=False),
        Scene("Sites that keep sessions in Redis themselves", [
            plain(),
            subject("Express: a page without a session", express, "/plain", redis=True),
            subject("Express with express-session: read", express, "/read", redis=True),
            subject("Express with express-session: increment", express, "/increment", redis=True),
            subject("Django: a page without a session", django, "/plain", redis=True),
            subject("Django with its sessions: read", django, "/read", redis=True),
            subject("Django with its sessions: increment", django, "/increment", redis=True),
        ]),
    ]


def populated(name, start, fill, count, requested):
    """Returns a subject whose store has `count` sessions, of which `requested` are requested in turn."""

    def begin(bed):
        target = start(bed, name)
        target.cookies = fills.cookies(bed, target, requested)
        if count > requested:
            fill(bed, target, count - requested)
        return target

    return name, begin
