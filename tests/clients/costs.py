"""Compares the cost of a page with a client and with its framework's sessions in Redis, both in one run.

    python3 tests/clients/costs.py --binary PATH --debian DIRECTORY [--python PATH] [--modules DIRECTORY] [--only SITE]

The page increments a counter. With the client, the program is in front of the site and keeps its sessions in the same
Redis; the stock sessions are in Redis without a proxy. Also counts the lines and the dependencies of each client.
"""

import argparse
import asyncio
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import kit

VISITORS = 8
SECONDS = 2
ROUNDS = 3
CLIENTS = {"php": "PHP", "django": "Django", "flask": "Flask", "express": "Express"}
SOURCES = {
    "php": ["php/cloakroom.php"],
    "django": ["python/src/cloakroom/*.py", "!asgi.py", "!flask.py"],
    "flask": ["python/src/cloakroom/*.py", "!asgi.py", "!django.py"],
    "express": ["node/*.js", "node/lib/*.js"],
}
DEPENDENCIES = {"php": "none", "django": "none but Django", "flask": "none but Flask", "express": "none"}
BODY = json.dumps([["add", "n", 1]])


def lines_of(name):
    """Returns how many lines of a client's sources are neither empty nor a comment alone."""
    patterns = SOURCES[name]
    without = {pattern[1:] for pattern in patterns if pattern[0] == "!"}
    files = [file for pattern in patterns if pattern[0] != "!" for file in kit.CLIENTS.glob(pattern)]
    texts = [file.read_text() for file in files if file.name not in without]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return len([line for line in lines if line and not line.startswith(("#", "//", "/*", "*"))])


async def visit(port, end, counts):
    """Requests the page until the end, as one visitor, on one connection as long as the server keeps it."""
    cookie, streams = "", None
    clock = asyncio.get_running_loop().time
    while clock() < end:
        reader, writer = streams or await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /change HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{cookie}"
        writer.write(f"{head}Content-Length: {len(BODY)}\r\n\r\n{BODY}".encode())
        response = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert response.split()[1] == "200", response
        if length := re.search(r"(?i)content-length: (\d+)", response):
            await reader.readexactly(int(length[1]))
        elif "chunked" in response.lower():
            await reader.readuntil(b"0\r\n\r\n")
        else:
            await reader.read()
        found = re.findall(r"(?im)^set-cookie: ([^;\r\n]*)", response)
        cookie = f"Cookie: {'; '.join(found)}\r\n" if found else cookie
        is_closed = not length and "chunked" not in response.lower() or "connection: close" in response.lower()
        if is_closed:
            writer.close()
        streams = None if is_closed else (reader, writer)
        counts.append(1)


async def rate(port):
    """Returns the pages per second of all visitors."""
    counts = []
    end = asyncio.get_running_loop().time() + SECONDS
    await asyncio.gather(*(visit(port, end, counts) for _ in range(VISITORS)))
    return len(counts) / SECONDS


def compare(site, options, directory, redis):
    log = pathlib.Path(directory) / f"{site.name}.log"
    [api] = kit.free_ports(1)
    settings = {
        "URL": f"http://127.0.0.1:{api}/_session", "SECRETS": kit.secret_file(directory, kit.CLIENT_SECRET)
    }  # fmt: skip
    with site.run(options, log, settings, form="production") as ours, site.run(options, log, {}, form="redis") as stock, kit.Program.run(
        options.binary, directory, ours, api=api, store=f"redis://127.0.0.1:{redis}", header_exchange="partial"
    ) as program:
        rates = {"with": [], "stock": []}
        for _ in range(ROUNDS):
            for name, port in {"with": program.public, "stock": stock}.items():
                rates[name].append(asyncio.run(rate(port)))
    return {name: round(statistics.median(found)) for name, found in rates.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kit.add_arguments(parser)
    parser.add_argument("--binary", required=True, help="the program")
    parser.add_argument("--debian", required=True, help="the directory of the Debian packages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        options.extensions = kit.unpack(options.debian, ["php[0-9]*-redis", "php[0-9]*-igbinary"], directory)
        [options.redis] = kit.free_ports(1)
        redis = ["redis-server", "--port", str(options.redis), "--save", "", "--dir", directory]
        with kit.process(redis, options.redis, stdout=subprocess.DEVNULL):
            for site in kit.sites(options.only or list(CLIENTS)):
                found = compare(site, options, directory, options.redis)
                print(f"{site.name}: {found['with']} pages/s with the client, {found['stock']} with stock sessions in Redis")
                kit.add_row(
                    "costs", client=CLIENTS[site.name], lines=lines_of(site.name), dependencies=DEPENDENCIES[site.name], **found
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
