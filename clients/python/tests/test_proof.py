"""The proof, with the test vectors of docs/reference/headers.md."""

import json
import re

import pytest
from support import ROOT

from cloakroom.proof import is_proven

PAGE = (ROOT / "docs" / "reference" / "headers.md").read_text()
VECTORS = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])


def headers_of(vector):
    return {**vector["headers"], "x-session-proof": vector["proof"]}


def test_all_vectors_are_there():
    assert len(VECTORS) == 5


@pytest.mark.parametrize("vector", VECTORS)
def test_vector(vector):
    headers, secret, now = headers_of(vector), vector["secret"].encode(), vector["t"]
    assert is_proven(headers.get, [secret], now)
    assert is_proven(headers.get, [b"x" * 32, secret], now), "the second of two secrets"
    assert not is_proven(headers.get, [b"x" * 32], now)
    assert not is_proven(headers.get, [], now)


@pytest.mark.parametrize("vector", VECTORS)
def test_time(vector):
    headers, secrets, now = headers_of(vector), [vector["secret"].encode()], vector["t"]
    assert is_proven(headers.get, secrets, now + 300)
    assert is_proven(headers.get, secrets, now - 300)
    assert not is_proven(headers.get, secrets, now + 301)
    assert not is_proven(headers.get, secrets, now - 301)


@pytest.mark.parametrize("vector", VECTORS)
def test_changes_are_refused(vector):
    headers, secrets, now = headers_of(vector), [vector["secret"].encode()], vector["t"]
    for name in headers:
        assert not is_proven({**headers, name: headers[name] + "x"}.get, secrets, now), name
        assert not is_proven({**headers, name: f"{headers[name]},{headers[name]}"}.get, secrets, now), name
        assert not is_proven({key: headers[key] for key in headers if key != name}.get, secrets, now), name
    assert not is_proven({**headers, "x-session-error": "session_ended"}.get, secrets, now) or (
        headers.get("x-session-error") == "session_ended"
    )


def test_text_that_is_not_latin_1_is_refused():
    assert not is_proven({**headers_of(VECTORS[0]), "x-session-token": "\u20ac"}.get, [b"x" * 32], VECTORS[0]["t"])
