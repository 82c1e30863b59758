"""The session as a dict, and what it writes, of requests that came through the program."""

import contextlib
import copy
import json
import pickle

import pytest
from support import kit

from cloakroom import Client, NotThroughCloakroom, RejectedValue, Session, Settings, Unavailable, Untrusted
from cloakroom.api import Answer
from cloakroom.wsgi import header_of

STORED = {"n": 1, "list": [1, {"a": None}], "long": "x" * 4000}


@contextlib.contextmanager
def request(park, visitor, kind=Session):
    """A request of a visitor, and its session."""
    environ, end = park.request(visitor)
    try:
        yield Client().session(header_of(environ), kind)
    finally:
        end()


@pytest.fixture
def visitor(park):
    """A visitor whose session has a value that does not fit into the headers."""
    visitor = park.program.visitor()
    with request(park, visitor) as session:
        session.update(STORED)
        session.save()
    return visitor


DICT = {
    "json": lambda session: json.loads(json.dumps(session)),
    "dict": dict,
    "unpacking": lambda session: {**session},
    "iter": lambda session: {key: session[key] for key in session},
    "items": lambda session: dict(session.items()),
    "keys and values": lambda session: dict(zip(session.keys(), session.values())),
    "copy": lambda session: session.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda session: pickle.loads(pickle.dumps(session)),
    "or": lambda session: session | {},
    "reversed or": lambda session: {} | session,
    "reversed": lambda session: {key: session[key] for key in reversed(session)},
    "pop": lambda session: {key: session.pop(key) for key in STORED},
    "get": lambda session: {key: session.get(key) for key in STORED},
    "popitem": lambda session: dict(session.popitem() for _ in STORED),
    "repr": lambda session: eval(repr(session)),
    "setdefault": lambda session: {key: session.setdefault(key, None) for key in STORED},
}


@pytest.mark.parametrize("name", DICT)
def test_it_is_a_dict(park, visitor, name):
    with request(park, visitor) as session:
        assert DICT[name](session) == STORED


def test_it_is_a_dict_to_comparisons(park, visitor):
    for check in [
        lambda session: session == STORED, lambda session: not session.__ne__(STORED), bool,
        lambda session: len(session) == 3, lambda session: "long" in session, lambda session: "m" not in session,
    ]:  # fmt: skip
        with request(park, visitor) as session:
            assert check(session)


def test_a_session_of_nobody_is_empty(park):
    with request(park, park.program.visitor()) as session:
        assert json.dumps(session) == "{}"
        assert not session
        assert list(session) == []


def test_an_omitted_value_is_written_without_being_read(park, visitor):
    if park.program.settings["SECRETS"]:
        with request(park, visitor) as session:
            before = park.program.api_calls()
            session["long"] = ["other"]
            assert session.patch() == {"set": {"long": ["other"]}, "if_lost": "drop"}
            assert session["n"] == 1
            assert park.program.api_calls() == before
    with request(park, visitor) as session:
        del session["long"]
        assert session.patch() == {"remove": ["long"], "if_lost": "drop"}
    with request(park, visitor) as session:
        session.clear()
        assert session.patch() == {"remove": sorted(STORED), "if_lost": "drop"}
        session.save()
    with request(park, visitor) as session:
        assert session == {}


def test_an_omitted_value_is_one_call(park, visitor):
    with request(park, visitor) as session:
        before = park.program.api_calls()
        assert session["long"] == STORED["long"]
        assert session.get("long") == STORED["long"]
        assert park.program.api_calls() == before + 1


def test_changes_inside_of_values_are_written(park, visitor):
    with request(park, visitor) as session:
        session["list"][1]["b"] = [1]
        session.save()
    with request(park, visitor) as session:
        assert session["list"] == [1, {"a": None, "b": [1]}]
        assert session.patch() is None


def test_numbers_stay_as_they_are(park, visitor):
    numbers = {"int": 1, "float": 1.0, "large": 2**63 - 1, "true": True}
    with request(park, visitor) as session:
        session.update(numbers)
        session.save()
    with request(park, visitor) as session:
        assert {key: repr(session[key]) for key in numbers} == {key: repr(numbers[key]) for key in numbers}


def test_keys_are_text(park, visitor):
    with request(park, visitor) as session:
        session[5] = "five"
        session.save()
    with request(park, visitor) as session:
        assert session["5"] == "five"


@pytest.mark.parametrize(
    ("key", "value"),
    [("", 1), ("k" * 257, 1), ("\ud800", 1), ("object", object()), ("nan", float("nan")), ("surrogate", "\udc00")],
)
def test_what_cannot_be_stored_names_the_key(park, visitor, key, value):
    with request(park, visitor) as session:
        session[key] = value
        with pytest.raises(RejectedValue) as error:
            session.save()
        assert repr(key[:40]) in str(error.value)


def test_a_session_that_is_too_large_names_its_values(park, visitor):
    with request(park, visitor) as session:
        session["small"], session["big"] = 1, "x" * 1_100_000
        with pytest.raises(RejectedValue, match=r"session_too_large.*'big' \(1100002 bytes\), 'small'"):
            session.save()


def test_a_patch_of_64_kib_is_a_call(park, visitor):
    with request(park, visitor) as session:
        session["a"] = "x" * 65_000
        assert bool(session.commit(200)) == bool(park.program.settings["SECRETS"])
    with request(park, visitor) as session:
        session["b"] = "x" * 65_536
        assert session.commit(200) is None
    with request(park, visitor) as session:
        assert len(session["b"]) == 65_536


def test_a_patch_with_an_error_page_is_a_call(park, visitor):
    with request(park, visitor) as session:
        session["a"] = 1
        assert session.commit(500) is None
    with request(park, visitor) as session:
        assert session["a"] == 1


def test_regenerate_gives_another_id(park, visitor):
    with request(park, visitor) as session:
        before = session.id
        session["a"] = 1
        session.regenerate()
        assert session.patch() == {"set": {"a": 1}, "rotate": "id"}
        assert session.id != before
        after = session.id
    with request(park, visitor) as session:
        assert session.id == after
        assert session["a"] == 1


def test_an_id_that_was_shown_is_kept(park):
    visitor = park.program.visitor()
    with request(park, visitor) as session:
        shown = session.id
        assert shown
        session.save()
    with request(park, visitor) as session:
        assert session.id == shown


def test_a_new_session_after_a_destroy_has_another_id(park, visitor):
    with request(park, visitor) as session:
        before = session.id
        session.destroy()
        session["a"] = []
        assert session.patch() == {"destroy": True}, "an empty value is not worth a session"
        session["a"].append(1)
        assert session.patch() == {"destroy": True, "set": {"a": [1]}}
        assert session.id not in (None, before)
        session["b"] = 2
        session.save()
    with request(park, visitor) as session:
        assert session == {"a": [1], "b": 2}


def test_log_in_and_log_out(park, visitor):
    with request(park, visitor) as session:
        session.login("Zoë")
        assert session.principal == "Zoë"
        session.save()
    with request(park, visitor) as session:
        assert session.principal == "Zoë"
        session.logout()
        assert session.principal is None
        assert session.patch() == {"principal": None}
        session.save()
    with request(park, visitor) as session:
        assert session.principal is None
        assert session == STORED


def test_a_log_in_as_another_principal_writes_changed_values_whole(park, visitor):
    with request(park, visitor) as session:
        session["user"], session["roles"] = {"name": "bob", "zone": "UTC"}, ["user"]
        session.login("bob")
        session.save()
    with request(park, visitor) as session:
        session["user"]["name"] = "ada"
        session["roles"].append("admin")
        del session["n"]
        session.login("ada", keys=["long", "never there"])
        session.save()
        assert session.patch() is None
    with request(park, visitor) as session:
        # The list that bob has left is not ada's.
        assert session == {"long": STORED["long"], "user": {"name": "ada", "zone": "UTC"}, "roles": ["user", "admin"]}


def test_a_log_in_without_the_values_leaves_those_of_the_other_principal(park, visitor):
    for name in ["bob", "ada"]:
        with request(park, visitor) as session:
            session.login(name)
            session.save()
    with request(park, visitor) as session:
        assert session == {}


def test_a_log_in_as_the_same_principal_writes_what_has_changed(park, visitor):
    with request(park, visitor) as session:
        session.login("ada")
        session["list"].append(2)
        del session["n"]
        assert session.patch() == {
            "set": {"list": [*STORED["list"], 2]}, "remove": ["n"], "principal": "ada", "rotate": "id"
        }  # fmt: skip
        session.save()
    with request(park, visitor) as session:
        session.login("ada")
        session["list"].append(3)
        assert session.patch()["set"] == {"list": [*STORED["list"], 2, 3]}


def trusted(path="user.name", **headers):
    """A session whose values came by header, and whose API does not answer."""
    settings = Settings(url=HEADERS["x-session-url"], trust="network", principal=path)
    found = {f"x-session-{name.replace('_', '-')}": value for name, value in headers.items()}
    return Client(settings).session({**HEADERS, **found}.get, Session)


def test_an_omitted_principal_is_removed():
    for log_out in [lambda s: s.update(user=None), lambda s: s.update(user={}), lambda s: s.clear()]:
        session = trusted(data_omitted="user")
        log_out(session)
        assert "principal" not in session.patch(), "nobody is logged in"
        session = trusted(data_omitted="user", principal="ada")
        log_out(session)
        assert session.patch()["principal"] is None


@pytest.mark.parametrize(("value", "name"), [(5, "5"), (5.0, "5"), (-1.5, "-1.5"), (True, None), ("", None)])
def test_a_number_is_a_principal(value, name):
    session = trusted("user.id")
    session["user"] = {"id": value}
    assert session.patch().get("principal") == name


@pytest.mark.parametrize(
    ("status", "code"), [(409, "response_committed"), (409, "ambiguous_cookie"), (404, "no_such_session"), (410, "new")]
)
def test_a_write_that_is_refused_for_the_request_is_unavailable(monkeypatch, caplog, status, code):
    session = trusted()
    monkeypatch.setattr(session._client.api, "call", lambda *args: Answer(status, json.dumps({"code": code}).encode()))
    session["list"] = [1]
    with pytest.raises(Unavailable, match=code):
        session.save()
    assert "'list'" in caplog.text


def test_a_write_that_may_have_happened_is_not_repeated():
    session = trusted()
    session["list"] = [1]
    with pytest.raises(Unavailable):
        session.save()
    session._retry_at = 0.0
    for write in [lambda: session.commit(200), session.save, lambda: session.commit(500)]:
        with pytest.raises(Unavailable):
            write()


def test_the_principal_can_be_a_value(park):
    settings = Settings(**{**vars(Client().settings), "principal": "user.name"})
    visitor = park.program.visitor()

    @contextlib.contextmanager
    def page():
        environ, end = park.request(visitor)
        session = Client(settings).session(header_of(environ), Session)
        yield session
        session.save()
        end()

    with page() as session:
        session["user"] = {"name": "ada", "roles": [None]}
    assert park.program.principals() == ["ada"]
    with page() as session:
        session["user"]["visits"] = 1
        assert session.patch() == {"merge": {"user": {"visits": 1}}, "if_lost": "drop"}
    with page() as session:
        session["user"]["name"] = "bob"
    with page() as session:
        assert session == {"user": {"name": "bob", "roles": [None], "visits": 1}}
    assert park.program.principals() == ["bob"]
    with page() as session:
        del session["user"]
    assert park.program.principals() == [None]


def test_a_session_that_was_ended_elsewhere_is_empty(park, visitor):
    with request(park, visitor) as slow:
        with request(park, visitor) as session:
            session.destroy()
            session.save()
        slow["a"] = 1
        slow.save()
        assert slow.failure is None
    with request(park, visitor) as session:
        assert session == {}


def test_a_value_that_became_another_type_elsewhere_is_dropped(park, visitor):
    with request(park, visitor) as slow:
        slow["list"].append(1)
        with request(park, visitor) as session:
            session["list"] = "text"
            session.save()
        slow.save()
    with request(park, visitor) as session:
        assert session["list"] == "text"


def test_a_request_from_elsewhere_fails_when_it_uses_the_session():
    session = Client(Settings()).session({}.get, Session)
    for use in [
        dict, bool, len, lambda s: s.get("a"), lambda s: s.update(a=1), lambda s: s.id, lambda s: s.principal,
        lambda s: s.login("ada"), lambda s: s.logout(), lambda s: s.regenerate(), lambda s: s.destroy(),
    ]:  # fmt: skip
        with pytest.raises(NotThroughCloakroom, match="did not come through Cloakroom"):
            use(session)
    assert session.commit(200) is None


HEADERS = {
    "x-session-url": "http://127.0.0.1:9/_session", "x-session-token": "t", "x-session-id": "AAECAwQFBgcICQoLDA0ODw",
    "x-session-data": '{"a": 1}',
}  # fmt: skip


def test_headers_count_only_if_they_are_trusted():
    with pytest.raises(Unavailable):
        dict(Client(Settings(url=HEADERS["x-session-url"])).session(HEADERS.get, Session))
    session = Client(Settings(url=HEADERS["x-session-url"], trust="network")).session(HEADERS.get, Session)
    assert session == {"a": 1}
    session["a"] = 2
    assert session.commit(200) == '{"set":{"a":2},"if_lost":"drop"}'
    # That the API is on a Unix socket says nothing about who can reach the site.
    url = "http+unix://%2Fno%2Fapi.sock/_session"
    with pytest.raises(Unavailable):
        dict(Client(Settings(url=url)).session({**HEADERS, "x-session-url": url}.get, Session))


def test_header_exchange_without_a_secret_is_reported_once(caplog):
    client = Client(Settings(url=HEADERS["x-session-url"]))
    for _ in range(2):
        client.session(HEADERS.get, Session)
    assert [record.message for record in caplog.records] == [
        "header exchange is on, but the client has no secret: X-Session-Data is not used; set CLOAKROOM_CLIENT_SECRETS"
    ]
    caplog.clear()
    Client(Settings(url=HEADERS["x-session-url"], trust="network")).session(HEADERS.get, Session)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("headers", "has_fallback"),
    [
        ({}, True),
        ({"x-session-proof": kit.proof({})}, True),  # of a route without sessions
        ({"x-session-proof": kit.proof({}, "another-secret-of-at-least-32-bytes")}, False),
        ({"x-session-id": "x"}, False),
        ({"x-session-id": "x", "x-session-proof": kit.proof({})}, False),
        ({"x-session-token": "x"}, False),
    ],
)
def test_the_fallback_with_a_secret(headers, has_fallback):
    client = Client(Settings(secrets=(kit.CLIENT_SECRET.encode(),), fallback="stock"))
    assert client.has_fallback(headers.get) is has_fallback
    if not has_fallback:
        with pytest.raises(Untrusted):
            client.session(headers.get, Session)


def test_another_api_is_refused():
    with pytest.raises(Untrusted):
        Client(Settings(trust="network")).session(HEADERS.get, Session)


@pytest.mark.parametrize(
    "wrong", [{"url": "127.0.0.1:8081"}, {"trust": "yes"}, {"fallback": "memory"}, {"secrets": (b"short",)}]
)
def test_wrong_settings_are_errors(wrong):
    with pytest.raises(ValueError, match=r"CLOAKROOM_CLIENT_|at least|less than"):
        Settings(**wrong)


def test_two_secrets(tmp_path, monkeypatch):
    for name in ["new", "old"]:
        (tmp_path / name).write_text(f"the {name} secret of at least 32 bytes\r\n")
    monkeypatch.setenv("CLOAKROOM_CLIENT_SECRETS", f"{tmp_path}/new:{tmp_path}/old")
    assert Settings.load().secrets == (b"the new secret of at least 32 bytes", b"the old secret of at least 32 bytes")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "cannot read the file {} of CLOAKROOM_CLIENT_SECRETS: No such file or directory"),
        ("", "cannot read the file {} of CLOAKROOM_CLIENT_SECRETS: Is a directory"),
        ("short", "the secret in {}, a file of CLOAKROOM_CLIENT_SECRETS, has less than 32 bytes"),
    ],
)
def test_wrong_secrets_name_the_file_and_the_setting(tmp_path, monkeypatch, name, reason):
    (tmp_path / "short").write_text("short")
    monkeypatch.setenv("CLOAKROOM_CLIENT_SECRETS", str(tmp_path / name))
    with pytest.raises(ValueError, match="CLOAKROOM_CLIENT_SECRETS") as raised:
        Settings.load()
    assert str(raised.value) == reason.format(tmp_path / name)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
