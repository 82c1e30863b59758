"""Django behind the program: WSGI and ASGI, the admin, and a site as in Django's tutorial."""

import asyncio
import datetime
import hashlib
import io
import logging
import pathlib
import pickle
import re
import shutil
import tempfile
import threading

import django
import pytest
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from support import Behind, kit, submit
from support import settings as client_settings

DIRECTORY = pathlib.Path(tempfile.mkdtemp(prefix="cloakroom-test-"))
OURS = "cloakroom.django.SessionMiddleware"
STOCK = "django.contrib.sessions.middleware.SessionMiddleware"
MIDDLEWARE = [
    OURS,
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
settings.configure(
    SECRET_KEY="key",
    DEBUG=False,
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    STATIC_URL="static/",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DIRECTORY / "db.sqlite3"}},
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "cloakroom.django",
    ],
    MIDDLEWARE=MIDDLEWARE,
    SESSION_ENGINE="cloakroom.django",
    MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
)
django.setup()

from django.contrib import admin, auth, messages  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.contrib.sessions.backends.base import UpdateError  # noqa: E402
from django.core import checks  # noqa: E402
from django.core.cache import cache  # noqa: E402
from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.signals import request_started  # noqa: E402
from django.http import FileResponse, HttpResponse, JsonResponse  # noqa: E402
from django.test import Client as DjangoClient  # noqa: E402
from django.test import override_settings  # noqa: E402
from django.urls import path  # noqa: E402
from django.utils import timezone  # noqa: E402
from django.views.decorators.cache import cache_page  # noqa: E402
from django.views.decorators.vary import vary_on_cookie  # noqa: E402

from cloakroom import NotThroughCloakroom  # noqa: E402
from cloakroom import django as engine  # noqa: E402

WHEN = datetime.datetime(2040, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
EXPIRIES = {
    "none": None, "browser": 0, "seconds": 300, "date": WHEN, "delta": datetime.timedelta(days=1),
    "naive": datetime.datetime(2040, 1, 2, 3, 4, 5), "past": -10,
}  # fmt: skip


class PickleSerializer:
    def dumps(self, value):
        return pickle.dumps(value)

    def loads(self, data):
        return pickle.loads(data)


def index(request):
    request.session["num_visits"] = request.session.get("num_visits", 0) + 1
    return JsonResponse({"visits": request.session["num_visits"]})


def delete_key(request):
    try:
        del request.session["num_visits"]
    except KeyError:
        return HttpResponse("missing")
    return HttpResponse("deleted")


def flush(request):
    request.session.flush()
    return HttpResponse(str(request.session.session_key))


def expire(request, name):
    request.session["a"] = 1
    request.session.set_expiry(EXPIRIES[name])
    age, at_close = request.session.get_expiry_age(), request.session.get_expire_at_browser_close()
    return JsonResponse({"age": age, "at_close": at_close})


def nested(request):
    request.session.setdefault("cart", {"items": []})["items"].append(1)
    return JsonResponse(request.session["cart"])


def cookie(request):
    worked = request.session.test_cookie_worked()
    request.session.set_test_cookie()
    return JsonResponse({"worked": worked})


def message(request):
    found = [str(one) for one in messages.get_messages(request)]
    messages.info(request, "Saved")
    return JsonResponse({"messages": found})


def who(request):
    return JsonResponse({"user": request.user.get_username(), "visits": request.session.get("num_visits")})


def log_in(request, name):
    user = User.objects.get(username=name)
    auth.login(request, user, "django.contrib.auth.backends.ModelBackend")
    return HttpResponse("ok")


def log_out(request):
    auth.logout(request)
    return HttpResponse("ok")


def error(request):
    request.session["lost"] = 1
    if "flush" in request.GET:
        request.session.flush()
    raise KeyError("error")


def slow(request):
    request.session["slow"] = 1
    slow.entered.set()
    slow.released.wait(10)
    return HttpResponse("ok")


slow.entered, slow.released = threading.Event(), threading.Event()


def store(request):
    request.session["when"] = [WHEN, {"a": 1}]
    request.session["plain"] = {"a": [1, None]}
    return HttpResponse("ok")


def stored(request):
    return JsonResponse({"same": request.session["when"] == [WHEN, {"a": 1}], "plain": request.session["plain"]})


def key(request):
    return JsonResponse({"key": request.session.session_key})


def file(request):
    request.session["a"] = 1
    return FileResponse(io.BytesIO(b"content"))


def form(request):
    return HttpResponse("posted" if request.method == "POST" else auth.get_user_model().__name__)


async def async_visits(request):
    visits = await request.session.aget("num_visits", 0) + 1
    await request.session.aset("num_visits", visits)
    return JsonResponse({"visits": visits, "key": request.session.session_key})


async def sync_in_async(request):
    return JsonResponse({"visits": request.session.get("num_visits")})


def untouched(request):
    return HttpResponse("ok")


def basket(request, name=None):
    """Shows the user; with a name it is changed first."""
    basket.runs += 1
    if name:
        request.session["name"] = name
    if "seen" in request.GET:
        request.session["seen"] = request.session.get("name")
    return HttpResponse(f"name={request.session.get('name')}")


basket.runs = 0


urlpatterns = [
    path("", index), path("delete", delete_key), path("flush", flush), path("expire/<name>", expire),
    path("nested", nested), path("cookie", cookie), path("message", message), path("who", who),
    path("login/<name>", log_in), path("logout", log_out), path("error", error), path("slow", slow),
    path("store", store), path("stored", stored), path("key", key), path("file", file), path("form", form),
    path("async", async_visits), path("sync-in-async", sync_in_async), path("untouched", untouched),
    path("basket", basket), path("basket/<name>", basket), path("page", cache_page(60)(vary_on_cookie(basket))),
    path("admin/", admin.site.urls),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def database():
    call_command("migrate", verbosity=0)
    User.objects.create_superuser("ada", "ada@example.org", "password")
    User.objects.create_user("bob")
    yield
    shutil.rmtree(DIRECTORY)


def behind(mode, handler=WSGIHandler):
    def make():
        engine.client.cache_clear()
        return handler()

    return Behind.run(make, mode)


@pytest.fixture
def site(mode):
    with behind(mode) as running:
        yield running


@pytest.fixture
def engine_alone(mode):
    """SESSION_ENGINE alone, with Django's own middleware."""
    with override_settings(MIDDLEWARE=[STOCK, *MIDDLEWARE[1:]]), behind(mode) as running:
        yield running


def only_session(running):
    [found] = running.service("GET", "").json["sessions"]
    return running.service("GET", f"/{found['id']}").json


def check_tutorial(running):
    visitor = running.visitor()
    assert [visitor.send("GET", "/").json["visits"] for _ in range(3)] == [1, 2, 3]
    assert visitor.send("GET", "/delete").text == "deleted"
    assert visitor.send("GET", "/delete").text == "missing"
    assert visitor.send("GET", "/").json["visits"] == 1
    before = only_session(running)["id"]
    assert visitor.send("GET", "/flush").text == "None"
    assert running.principals() == []
    assert visitor.send("GET", "/").json["visits"] == 1
    assert only_session(running)["id"] != before
    assert visitor.send("GET", "/cookie").json == {"worked": False}
    assert visitor.send("GET", "/cookie").json == {"worked": True}
    assert visitor.send("GET", "/message").json == {"messages": []}
    assert visitor.send("GET", "/message").json == {"messages": ["Saved"]}


def check_log_in(running):
    visitor = running.visitor()
    visitor.send("GET", "/")
    anonymous, planted = only_session(running)["id"], visitor.copy()
    visitor.send("GET", "/login/ada")
    assert running.principals() == ["ada"], "not the primary key"
    assert only_session(running)["id"] != anonymous
    assert visitor.send("GET", "/who").json == {"user": "ada", "visits": 1}
    assert planted.send("GET", "/who").json == {"user": "", "visits": None}
    visitor.send("GET", "/login/bob")
    assert running.principals() == ["bob"]
    assert visitor.send("GET", "/who").json == {"user": "bob", "visits": None}
    visitor.send("GET", "/logout")
    assert running.principals() == []
    assert visitor.send("GET", "/who").json == {"user": "", "visits": None}


def check_expiry(running):
    def expiry_of(name):
        visitor = running.visitor()
        answer = visitor.send("GET", f"/expire/{name}").json
        found = running.service("GET", "").json["sessions"]
        [session] = [one for one in found if one["id"] not in seen] or [None]
        if session:
            seen.add(session["id"])
        return answer, session and running.service("GET", f"/{session['id']}").json["expiry"]

    seen = set()
    age = settings.SESSION_COOKIE_AGE
    assert expiry_of("none") == ({"age": age, "at_close": False}, None)
    answer, found = expiry_of("browser")
    assert (answer, found["browser_close"]) == ({"age": age, "at_close": True}, True)
    assert expiry_of("seconds") == ({"age": 300, "at_close": False}, {"idle": 300})
    answer, found = expiry_of("date")
    assert found == {"at": "2040-01-02T03:04:05.000Z"}
    answer, found = expiry_of("delta")
    assert 86390 <= answer["age"] <= 86400
    assert abs(datetime.datetime.fromisoformat(found["at"].replace("Z", "+00:00")) - timezone.now()).days <= 1
    # A date in the past ends the session at once.
    assert expiry_of("past")[1] is None


SITE_CACHE = ["django.middleware.cache.UpdateCacheMiddleware", "django.middleware.cache.FetchFromCacheMiddleware"]


@pytest.mark.parametrize("session", [OURS, STOCK])
@pytest.mark.parametrize("target", ["/basket", "/page"])
def test_cached_pages_are_of_one_session(mode, session, target):
    middleware = [session, *MIDDLEWARE[1:]]
    if target == "/basket":
        middleware = [SITE_CACHE[0], *middleware, SITE_CACHE[1]]
    cache.clear()
    with override_settings(MIDDLEWARE=middleware), behind(mode) as running:
        visitors = {name: running.visitor() for name in ["ada", "bob"]}
        for name, visitor in visitors.items():
            visitor.send("GET", f"/basket/{name}")
        for _ in range(2):
            for name, visitor in visitors.items():
                assert visitor.send("GET", target).text == f"name={name}"
        assert running.visitor().send("GET", target).text == "name=None"
        if mode == "headers" and session == OURS:
            before = basket.runs
            visitors["ada"].send("GET", target)
            assert basket.runs == before, "it comes from the cache"
        # A visitor who knows the id, or the cookie that stands for it, has none of its pages.
        for session_id in [one["id"] for one in running.service("GET", "").json["sessions"]]:
            for key in [session_id, f"{session_id} "]:
                thief = running.visitor()
                thief.jar["sessionid"] = hashlib.sha256(key.encode()).hexdigest()
                assert thief.send("GET", target).text == "name=None"


@pytest.mark.parametrize("session", [OURS, STOCK])
def test_a_page_that_changes_the_session_is_not_cached(mode, session):
    cache.clear()
    with (
        override_settings(MIDDLEWARE=[SITE_CACHE[0], session, *MIDDLEWARE[1:], SITE_CACHE[1]]),
        behind(mode) as running,
    ):
        visitors = {name: running.visitor() for name in ["ada", "bob", "new"]}
        for name in ["ada", "bob"]:
            visitors[name].send("GET", f"/basket/{name}")
        for visitor in visitors.values():
            visitor.send("GET", "/basket?seen")
        found = [
            running.service("GET", f"/{one['id']}/values").json for one in running.service("GET", "").json["sessions"]
        ]
        assert sorted((one.get("name") or "", one.get("seen") or "") for one in found if one.get("seen")) == [
            ("ada", "ada"), ("bob", "bob")
        ]  # fmt: skip


class Replacing:
    """Replaces each response, as middleware does that redirects or answers 304."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        self.get_response(request)
        return HttpResponse("replaced")


def test_a_change_is_kept_if_outer_middleware_replaces_the_response(mode):
    replacing = f"{__name__}.Replacing"
    with override_settings(MIDDLEWARE=[replacing, *MIDDLEWARE]), behind(mode) as running:
        assert running.visitor().send("GET", "/").text == "replaced"
        assert only_session(running)["values"] == {"num_visits": 1}
        [warning] = [one for one in engine.check_settings(None) if one.id == "cloakroom.W003"]
        assert replacing in warning.msg
    security = "django.middleware.security.SecurityMiddleware"
    with override_settings(MIDDLEWARE=[security, *MIDDLEWARE]), behind(mode) as running:
        before = running.api_calls()
        running.visitor().send("GET", "/")
        assert running.api_calls() - before == (0 if mode == "headers" else 1)
        assert not engine.check_settings(None)


def test_tutorial(site):
    check_tutorial(site)


def test_tutorial_with_the_engine_alone(engine_alone):
    check_tutorial(engine_alone)


def test_log_in(site):
    check_log_in(site)


def test_log_in_with_the_engine_alone(engine_alone):
    check_log_in(engine_alone)


def test_expiry(site):
    check_expiry(site)


def test_expiry_with_the_engine_alone(engine_alone):
    check_expiry(engine_alone)


def test_expiry_can_be_taken_back(site):
    visitor = site.visitor()
    visitor.send("GET", "/expire/seconds")
    visitor.send("GET", "/expire/none")
    assert only_session(site)["expiry"] is None


def test_expiry_without_time_zones(site):
    with override_settings(USE_TZ=False):
        site.visitor().send("GET", "/expire/naive")
    at = datetime.datetime.fromisoformat(only_session(site)["expiry"]["at"].replace("Z", "+00:00"))
    assert at.timestamp() == EXPIRIES["naive"].timestamp()


def test_admin(site, mode):
    visitor = site.visitor()
    page = visitor.send("GET", "/admin/login/").text
    assert "csrftoken" in visitor.jar
    form = {"username": "ada", "password": "wrong", "next": "/admin/"}
    assert "Please enter the correct" in submit(visitor, "/admin/login/", page, form).text
    assert site.principals() == []
    response = submit(visitor, "/admin/login/", page, {**form, "password": "password"})
    assert response.status == 302
    assert site.principals() == ["ada"]
    page = visitor.send("GET", "/admin/auth/user/add/").text
    assert "sessionid" not in visitor.jar
    added = {"username": "new", "password1": "aeZ7shai", "password2": "aeZ7shai", "usable_password": "true"}
    assert submit(visitor, "/admin/auth/user/add/", page, added).status == 302
    assert "was added successfully" in visitor.send("GET", "/admin/auth/user/").text
    User.objects.get(username="new").delete()
    assert submit(visitor, "/admin/logout/", page, {}).status == 200
    assert site.principals() == []
    visitor.send("GET", "/admin/", expects=302)
    kit.add_row(
        "applications",
        application=f"Admin of Django {django.get_version()}",
        how=f"`SESSION_ENGINE` and the middleware; {kit.MODE_NAMES[mode]}",
        clicked="log-in with a wrong and the right password, a user added, log-out",
        result="as expected",
    )


def test_the_middleware_sets_no_cookie_of_its_own(site):
    visitor = site.visitor()
    response = visitor.send("GET", "/")
    assert list(visitor.jar) == ["id"]
    assert response.headers["Vary"] == "Cookie"


def test_changes_inside_of_values_are_kept(site):
    visitor = site.visitor()
    found = [visitor.send("GET", "/nested").json["items"] for _ in range(3)]
    assert found == [[1], [1, 1], [1, 1, 1]]


def test_error_pages_save_no_values(site):
    visitor = site.visitor()
    visitor.send("GET", "/")
    visitor.send("GET", "/error", expects=500)
    assert only_session(site)["values"] == {"num_visits": 1}
    visitor.send("GET", "/error?flush=1", expects=500)
    assert site.principals() == []


def test_a_new_visitor_has_no_key(site):
    visitor = site.visitor()
    assert visitor.send("GET", "/key").json == {"key": None}
    assert not visitor.jar
    visitor.send("GET", "/")
    assert visitor.send("GET", "/key").json == {"key": only_session(site)["id"]}


def end_during_a_slow_request(running):
    slow.entered.clear()
    slow.released.clear()
    visitor = running.visitor()
    visitor.send("GET", "/")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(visitor.copy().send("GET", "/slow", expects=None)))
    thread.start()
    assert slow.entered.wait(10)
    running.service("DELETE", f"/{only_session(running)['id']}")
    slow.released.set()
    thread.join(10)
    return answers[0].status


def test_a_session_that_was_ended_leaves_a_page(site):
    assert end_during_a_slow_request(site) == 200
    assert site.principals() == []


def test_a_session_that_was_ended_interrupts_djangos_middleware(engine_alone):
    assert end_during_a_slow_request(engine_alone) == 400


def test_other_serializers(site):
    with override_settings(SESSION_SERIALIZER=f"{__name__}.PickleSerializer"):
        visitor = site.visitor()
        visitor.send("GET", "/store")
        assert visitor.send("GET", "/stored").json == {"same": True, "plain": {"a": [1, None]}}
    values = only_session(site)["values"]
    assert values["plain"] == {"a": [1, None]}, "what JSON can hold is JSON"
    assert list(values["when"]["$cloakroom"]) == ["pickle"]


def test_values_that_json_cannot_hold_are_an_error(site, caplog):
    visitor = site.visitor()
    visitor.send("GET", "/store", expects=500)
    assert "the session value of 'when' is not JSON" in caplog.text


def test_files_are_sent(site):
    assert site.visitor().send("GET", "/file").text == "content"
    assert only_session(site)["values"] == {"a": 1}


def test_sessions_of_a_user(site):
    for name in ["ada", "ada", "bob"]:
        site.visitor().send("GET", f"/login/{name}")
    ada = User.objects.get(username="ada")
    assert [one["principal"] for one in engine.principal_sessions(ada)] == ["ada", "ada"]
    assert engine.end_principal_sessions(ada) == 2
    assert site.principals() == ["bob"]


def test_any_session_by_its_key(site):
    visitor = site.visitor()
    visitor.send("GET", "/")
    found = only_session(site)["id"]
    store = engine.SessionStore(found)
    assert store["num_visits"] == 1
    assert store.exists(found)
    store["num_visits"] = 5
    store.save()
    assert visitor.send("GET", "/").json["visits"] == 6
    engine.SessionStore(found).delete()
    assert site.principals() == []
    assert not store.exists(found)
    store["num_visits"] = 7
    with pytest.raises(UpdateError):
        store.save()
    assert store.load() == {}


def test_a_session_outside_of_a_request_needs_the_service_token(site):
    with client_settings(SERVICE_TOKEN=None):
        engine.client.cache_clear()
        with pytest.raises(NotThroughCloakroom, match="CLOAKROOM_CLIENT_SERVICE_TOKEN"):
            engine.SessionStore("AAECAwQFBgcICQoLDA0ODw").get("a")
        with pytest.raises(NotThroughCloakroom, match="belongs to no request"):
            engine.SessionStore().get("a")
    engine.client.cache_clear()


def session_headers(running):
    """The headers of a request of a visitor without a session."""
    return {"X-Session-Url": running.url, "X-Session-Token": "t", "X-Session-Id": "AAECAwQFBgcICQoLDA0ODw"}


def environ_of(target, headers):
    environ = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}
    return {
        "REQUEST_METHOD": "GET", "PATH_INFO": target, "SERVER_NAME": "localhost", "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.url_scheme": "http", **environ,
    }  # fmt: skip


def call(target, headers):
    heads = []
    start = lambda status, headers: heads.extend([status, dict(headers)])  # noqa: E731
    body = b"".join(WSGIHandler()(environ_of(target, headers), start))
    call.headers = heads[1]
    return heads[0], body


DEAD = {
    "X-Session-Url": "http://127.0.0.1:9/_session", "X-Session-Token": "t", "X-Session-Id": "AAECAwQFBgcICQoLDA0ODw",
}  # fmt: skip


def test_without_the_api_a_request_fails_with_503(caplog):
    with override_settings(CLOAKROOM_CLIENT_URL=DEAD["X-Session-Url"]):
        for target in ["/", "/who", "/flush", "/admin/"]:
            caplog.clear()
            assert call(target, DEAD)[0] == "503 Service Unavailable", target
            lines = [record.message for record in caplog.records if record.name == "cloakroom"]
            assert len(lines) == 1, "one line for each request"
            assert "the session API does not answer" in lines[0]
        assert call("/untouched", DEAD)[0] == "200 OK"


def test_a_forged_token_is_refused_by_the_engine_alone(engine_alone):
    engine.client.cache_clear()
    if not engine.client().settings.secrets:
        assert call("/who", session_headers(engine_alone))[0] == "403 Forbidden"


def test_requests_from_elsewhere(caplog):
    engine.client.cache_clear()
    assert call("/untouched", {})[0] == "200 OK"
    assert "Vary" not in call.headers
    caplog.clear()
    assert call("/who", {})[0] == "500 Internal Server Error"
    assert_reason_without_traceback(caplog)


def assert_reason_without_traceback(caplog):
    reasons = [record.message for record in caplog.records if record.name == "cloakroom"]
    assert reasons == ["this request did not come through Cloakroom: it has no X-Session-Token"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("middleware", [OURS, STOCK])
def test_requests_from_elsewhere_have_one_line_with_any_middleware(caplog, middleware):
    with override_settings(MIDDLEWARE=[middleware, *MIDDLEWARE[1:]]):
        assert call("/who", {})[0] == "500 Internal Server Error"
    assert_reason_without_traceback(caplog)


def test_an_error_that_the_log_does_not_have_keeps_its_traceback(caplog):
    error = NotThroughCloakroom("of the site")
    logging.getLogger("django.request").error("Internal Server Error", exc_info=(type(error), error, None))
    assert "NotThroughCloakroom: of the site" in caplog.text


def test_the_fallback_is_djangos_database(caplog):
    for middleware in [OURS, STOCK]:
        changed = {"MIDDLEWARE": [middleware, *MIDDLEWARE[1:]], "CLOAKROOM_CLIENT_FALLBACK": "stock"}
        with override_settings(**changed):
            caplog.clear()
            client = DjangoClient()
            assert [client.get("/").json()["visits"] for _ in range(2)] == [1, 2]
            client.force_login(User.objects.get(username="ada"))
            assert client.get("/who").json()["user"] == "ada"
            assert client.session["num_visits"] == 2
            client.logout()
            assert client.get("/who").json()["user"] == ""
            assert caplog.text.count("using the framework's own sessions") == 1


def test_scheme_behind_tls(site):
    visitor = site.visitor()
    page = visitor.send("GET", "/admin/login/").text
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]
    headers = {
        "Cookie": f"csrftoken={visitor.jar['csrftoken']}", "X-CSRFToken": token,
        "Origin": f"https://127.0.0.1:{site.site}", "X-Forwarded-Proto": "https",
    }  # fmt: skip
    target = "/form"
    if site.settings["SECRETS"]:
        return  # the site cannot be asked directly
    assert kit.fetch(site.site, "POST", target, headers=headers).status == 403
    with override_settings(SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https")):
        assert kit.fetch(site.site, "POST", target, headers=headers).text == "posted"


def messages_of(**changed):
    with override_settings(**changed):
        found = checks.run_checks(tags=["security"], include_deployment_checks=True)
        return {one.id for one in found if one.id.startswith("cloakroom")}


def test_checks(tmp_path):
    engine.client.cache_clear()
    assert messages_of() == {"cloakroom.W002"}
    tls = {"SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")}
    assert messages_of(**tls) == set()
    assert messages_of(**tls, MIDDLEWARE=[STOCK, *MIDDLEWARE[1:]]) == {"cloakroom.W001"}
    assert messages_of(**tls, CLOAKROOM_CLIENT_SECRETS=str(tmp_path / "missing")) == {"cloakroom.E001"}
    assert messages_of(**tls, SESSION_ENGINE="django.contrib.sessions.backends.db") == set()


def test_wrong_settings_fail_at_the_start(tmp_path):
    with override_settings(CLOAKROOM_CLIENT_SECRETS=str(tmp_path / "missing")):
        with pytest.raises(ValueError, match=r"cannot read the file .*/missing of CLOAKROOM_CLIENT_SECRETS"):
            WSGIHandler()


def test_the_admin_accepts_the_middleware():
    from django.contrib.admin.checks import check_dependencies

    assert [one for one in check_dependencies() if "SessionMiddleware" in str(one)] == []


async def asgi_call(handler, target, headers):
    scope = {
        "type": "http", "method": "GET", "path": target, "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    communicator = ApplicationCommunicator(handler, scope)
    await communicator.send_input({"type": "http.request", "body": b"", "more_body": False})
    start = await communicator.receive_output(5)
    body = await communicator.receive_output(5)
    await communicator.wait(5)
    return start["status"], body["body"]


TRUSTED = {
    "X-Session-Url": "http://127.0.0.1:9/_session",
    "X-Session-Token": "t",
    "X-Session-Data": '{"num_visits": 4}',
}


def test_asgi_requests_from_elsewhere_have_no_traceback(caplog):
    caplog.set_level(logging.ERROR)
    assert asyncio.run(asgi_call(ASGIHandler(), "/who", {}))[0] == 500
    assert_reason_without_traceback(caplog)


@pytest.mark.skipif(django.VERSION < (5, 1), reason="sessions have no asynchronous methods")
def test_asgi_needs_the_middleware(caplog):
    caplog.set_level(logging.ERROR)
    changed = {"CLOAKROOM_CLIENT_TRUST": "network", "CLOAKROOM_CLIENT_URL": TRUSTED["X-Session-Url"]}
    with override_settings(**changed):
        status, body = asyncio.run(asgi_call(ASGIHandler(), "/async", TRUSTED))
        assert (status, body[:12]) == (200, b'{"visits": 5')
        status, body = asyncio.run(asgi_call(ASGIHandler(), "/sync-in-async", TRUSTED))
        assert (status, body) == (200, b'{"visits": 4}')
        with override_settings(MIDDLEWARE=[STOCK, *MIDDLEWARE[1:]]):
            status, _ = asyncio.run(asgi_call(ASGIHandler(), "/async", TRUSTED))
            assert status == 500
            assert "Under ASGI, MIDDLEWARE needs cloakroom.django.SessionMiddleware" in caplog.text


def test_a_synchronous_call_in_an_asynchronous_view_is_an_error(caplog):
    with override_settings(CLOAKROOM_CLIENT_URL=DEAD["X-Session-Url"]):
        status, _ = asyncio.run(asgi_call(ASGIHandler(), "/sync-in-async", DEAD))
        assert status >= 500
        assert "SynchronousOnlyOperation" in caplog.text
        assert asyncio.run(asgi_call(ASGIHandler(), "/async", DEAD))[0] == 503


def test_the_request_of_another_thread_is_not_taken():
    request_started.send(None, environ=environ_of("/", DEAD))
    engine._environ.set(None)
    with pytest.raises(NotThroughCloakroom):
        engine.SessionStore().get("a")
