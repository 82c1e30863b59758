"""Searches logs for secrets: cookie tokens, request tokens, keys, passwords, the service token and client secrets.

    python3 tests/leaks.py DIRECTORY

Tokens are found by verification, not by a pattern: every substring of base64url characters is tried, and is a
token if its tag verifies with the key of the tests. First the search has to find secrets that it plants itself.
"""

import base64
import hashlib
import hmac
import pathlib
import re
import sys
import tempfile

# As configured by tests/it/support/cloakroom.rs.
KEY = "dGhlIGtleSB0aGF0IGFsbCB0aGVzZSB0ZXN0cyB1c2U"
SERVICE_TOKEN = "the-service-token-of-the-tests"
# Part of each `[api] client_secret` of the tests.
CLIENT_SECRET = "secret of the proxy and its sites"
PASSWORDS = ["hunter2", "hunter3"]
COOKIE_NAMES = ["__Host-id", "id"]

# A request token may end with the address of its instance, e.g. "127.0.0.1:8081".
REQUEST_BYTES = range(43 + 16, 43 + 16 + len("127.0.0.1:65535") + 1)

RUN = re.compile(rb"[A-Za-z0-9_-]{48,}")


def decode(text):
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def subkey(key, purpose):
    """HKDF-SHA-256 without salt, one block (RFC 5869)."""
    extracted = hmac.new(b"\0" * 32, key, hashlib.sha256).digest()
    return hmac.new(extracted, purpose + b"\x01", hashlib.sha256).digest()


def tag(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()[:16]


class Search:
    def __init__(self, keys):
        self.token_keys = [subkey(key, b"token") for key in keys]
        self.request_keys = [subkey(key, b"request") for key in keys]
        self.texts = [KEY, SERVICE_TOKEN, CLIENT_SECRET, *PASSWORDS]
        self.lines = 0
        self.candidates = 0

    def is_cookie_token(self, text):
        data = decode(text)
        names = [name.encode() + b"\0" for name in COOKIE_NAMES]
        return any(tag(key, name + data[:20]) == data[20:] for key in self.token_keys for name in names)

    def is_request_token(self, text):
        data = decode(text)
        return any(tag(key, data[:-16]) == data[-16:] for key in self.request_keys)

    def found_in(self, line):
        for text in self.texts:
            if text.encode() in line:
                yield f"the text {text[:4]}..."
        for run in RUN.findall(line):
            lengths = [(48, self.is_cookie_token, "a cookie token")]
            lengths += [((size * 4 + 2) // 3, self.is_request_token, "a request token") for size in REQUEST_BYTES]
            for length, check, what in lengths:
                for at in range(len(run) - length + 1):
                    self.candidates += 1
                    if check(run[at : at + length]):
                        yield what

    def directory(self, path):
        found = []
        for file in sorted(path.rglob("*")):
            if not file.is_file():
                continue
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    self.lines += 1
                    found += [f"{file.name}:{number}: {what}" for what in self.found_in(line)]
        return found


def finds_planted_secrets(search, key):
    """Returns True if the search finds the secrets that this function plants."""
    cookie = b"\x07" * 16 + b"\0\0\0\x01"
    cookie += tag(search.token_keys[0], b"__Host-id\0" + cookie)
    requests = [b"\x07" * 43, b"\x07" * 43 + b"127.0.0.1:8081"]
    requests = [request + tag(search.request_keys[0], request) for request in requests]
    secrets = [base64.urlsafe_b64encode(secret).rstrip(b"=").decode() for secret in (cookie, *requests)]
    with tempfile.TemporaryDirectory() as directory:
        for index, secret in enumerate([*secrets, *search.texts]):
            (pathlib.Path(directory) / f"{index}.log").write_text(f"x DEBUG y: header=abc{secret}def\n")
        found = search.directory(pathlib.Path(directory))
    return len({line.split(":")[0] for line in found}) == len(secrets) + len(search.texts)


def main():
    directory = pathlib.Path(sys.argv[1])
    keys = [decode(KEY.encode())]
    # Keys that proxies under test have generated.
    keys += [decode(file.read_bytes().strip()) for file in directory.rglob("*session-key")]
    if not finds_planted_secrets(Search(keys), keys[0]):
        print("the search does not find planted secrets")
        return 1
    search = Search(keys)
    found = [line for line in search.directory(directory) if not line.split(":")[0].endswith("session-key")]
    print(f"{search.lines} lines, {search.candidates} candidates, {len(found)} secrets")
    for line in found[:20]:
        print(line)
    # Without lines nothing was searched, which proves nothing.
    return 1 if found or search.lines < 300 else 0


sys.exit(main())
