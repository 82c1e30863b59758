"""Sessions for Django.

    SESSION_ENGINE = "cloakroom.django"
    MIDDLEWARE = [..., "cloakroom.django.SessionMiddleware", ...]  # in place of Django's

Under WSGI the engine works with Django's own SessionMiddleware, too.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import json
import logging
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Optional

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError
from django.contrib.sessions.middleware import SessionMiddleware as StockMiddleware
from django.contrib.sessions.serializers import JSONSerializer
from django.core import checks
from django.core.exceptions import PermissionDenied
from django.core.signals import request_finished, request_started, setting_changed
from django.http import HttpResponse
from django.utils.asyncio import async_unsafe
from django.utils.cache import patch_vary_headers
from django.utils.module_loading import import_string

from .client import Client
from .errors import PAGES, CloakroomError, NotThroughCloakroom, RejectedValue, SessionLost, Unavailable, Untrusted
from .session import UNCHANGED, Session
from .settings import PREFIX, Settings
from .values import TAG, Tagged, from_json, is_plain, to_json
from .wsgi import header_of

EXPIRY_KEY = "_session_expiry"
AUTH_KEYS = (SESSION_KEY, BACKEND_SESSION_KEY, HASH_SESSION_KEY)
# Middleware that returns the response that it was given, so that X-Session-Patch passes it. Others may replace the
# response, e.g. by a 304 or a redirect.
KEEPS_RESPONSES = {
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "corsheaders.middleware.CorsMiddleware",
}
NO_REQUEST = (
    "this SessionStore belongs to no request that came through Cloakroom. "
    "Under ASGI, MIDDLEWARE needs cloakroom.django.SessionMiddleware in place of Django's"
)

# The environ of a request that no store has taken yet. A SessionStore is made from a key alone, so the engine
# takes the request from a signal. Under ASGI signals run in tasks of their own, and this stays empty.
_environ: ContextVar[Optional[dict[str, Any]]] = ContextVar("cloakroom_environ", default=None)


class Refused(Untrusted, PermissionDenied):
    """Django answers this with 403."""

    is_logged = True


def _drop_traceback(record: logging.LogRecord) -> bool:
    """Drops what Django logs of an error that the log has already: hundreds of lines that do not say more."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, (NotThroughCloakroom, Untrusted, Unavailable)) and error.is_logged)


logging.getLogger("django.request").addFilter(_drop_traceback)


@functools.cache
def client() -> Client:
    """Returns the client of the site, with the settings of Django and of the environment."""
    return Client(Settings.load(lambda name: getattr(settings, name, None)))


def _take_environ(sender: Any, environ: Optional[dict[str, Any]] = None, **kwargs: Any) -> None:
    _environ.set(environ)


def _drop_environ(sender: Any, **kwargs: Any) -> None:
    _environ.set(None)


def _reset_client(sender: Any, setting: str, **kwargs: Any) -> None:
    if setting.startswith(PREFIX):
        client.cache_clear()


request_started.connect(_take_environ)
request_finished.connect(_drop_environ)
setting_changed.connect(_reset_client)


class DjangoSession(Session):
    """The values, with the serializer and the expiry of Django."""

    may_block = False

    def _call(self, method: str, path: str, patch: Optional[Mapping[str, Any]] = None, missing: Any = None) -> Any:
        return (self._exchange if self.may_block else self._guarded)(method, path, patch, missing)

    @async_unsafe
    def _guarded(self, *args: Any) -> Any:
        return self._exchange(*args)

    def _exchange(self, method: str, path: str, patch: Optional[Mapping[str, Any]], missing: Any) -> Any:
        try:
            return super()._call(method, path, patch, missing)
        except Untrusted as error:
            raise Refused(str(error)) from None

    def to_json(self, value: Any, key: str = "") -> Any:
        serializer = _own_serializer()
        if serializer is None or is_plain(value) or isinstance(value, Tagged):
            return to_json(value)
        data = serializer.dumps(value)
        try:
            return json.loads(data)
        except ValueError:
            return {TAG: {"pickle": base64.b64encode(data).decode()}}

    def from_json(self, value: Any, key: str = "") -> Any:
        serializer = _own_serializer()
        if serializer is None:
            return from_json(value)
        if isinstance(value, dict) and isinstance(value.get(TAG), dict) and "pickle" in value[TAG]:
            return serializer.loads(base64.b64decode(value[TAG]["pickle"]))
        found = from_json(value)
        if isinstance(found, (bytes, Tagged)) or not _writes_json(serializer):
            return found
        return serializer.loads(json.dumps(found).encode())

    def expiry_change(self, changed: Mapping[str, Any], missing: Iterable[str]) -> Any:
        if EXPIRY_KEY in missing:
            return None
        return expiry(changed[EXPIRY_KEY]) if EXPIRY_KEY in changed else UNCHANGED


class StoredSession(DjangoSession):
    """Any session by its id, outside of a request."""

    def __init__(self, key: str) -> None:
        super().__init__(client(), headers={"x-session-id": key}.get, is_trusted=True)
        self._path = "/" + urllib.parse.quote(key, safe="")

    def _exchange(self, method: str, path: str, patch: Optional[Mapping[str, Any]], missing: Any) -> Any:
        answer = client().service(method, self._path + path, patch)
        if answer.status == 404:
            raise SessionLost("there is no such session")
        if answer.status >= 400:
            raise RejectedValue(f"the session API refuses the change ({answer.status} {answer.member('code')})")
        return answer.json()


class SessionStore(SessionBase):
    """The session of the current request, or, by its key, any other one if there is a service token."""

    def __new__(cls, session_key: Optional[str] = None) -> Any:
        environ = _environ.get()
        if cls is SessionStore and client().has_fallback(header_of(environ or {})):
            return _stock_store(session_key)
        return super().__new__(cls)

    def __init__(self, session_key: Optional[str] = None, environ: Optional[dict[str, Any]] = None) -> None:
        # With the middleware, the patch leaves with the response, else by save().
        self.is_deferred = environ is not None
        environ = environ or _environ.get()
        _environ.set(None)
        self._assigned_key: Optional[str] = None
        if environ is not None:
            try:
                self.core = client().session(header_of(environ), DjangoSession)
                separate_caches(environ, self.core)
            except Untrusted as error:
                raise Refused(str(error)) from None
            # The key of a cookie of Django's own means nothing here.
            session_key = None
        elif session_key and self._validate_session_key(session_key):
            self.core = StoredSession(session_key)
        else:
            self.core = DjangoSession(client(), fault=NotThroughCloakroom(NO_REQUEST))
        super().__init__(session_key)

    @classmethod
    def of_request(cls, environ: dict[str, Any]) -> SessionStore:
        store: SessionStore = super().__new__(cls)
        store.__init__(environ=environ)  # type: ignore[misc]
        return store

    def _get_key(self) -> Optional[str]:
        # A property cannot be awaited, so it may make a call in an asynchronous view: after cycle_key().
        self.core.may_block = True
        try:
            return self._assigned_key or self.core.key
        finally:
            self.core.may_block = False

    def _set_key(self, value: Optional[str]) -> None:
        self._assigned_key = value if self._validate_session_key(value) else None

    session_key = property(_get_key)
    _session_key = property(_get_key, _set_key)

    def _get_session(self, no_load: bool = False) -> DjangoSession:
        self.accessed = True
        return self.core

    async def _aget_session(self, no_load: bool = False) -> DjangoSession:
        self.accessed = True
        if not self.core.is_complete:
            await sync_to_async(self.core.load)()
        return self.core

    _session = property(_get_session)

    def is_empty(self) -> bool:
        return self.core.is_empty

    def clear(self) -> None:
        self.accessed = self.modified = True
        self.core.clear()

    def flush(self) -> None:
        self.accessed = self.modified = True
        self._assigned_key = None
        self.core.destroy()
        if not self.is_deferred:
            # Django's middleware does not save a session that is empty.
            self.core.save()

    async def aflush(self) -> None:
        await sync_to_async(self.flush)()

    def cycle_key(self) -> None:
        self.accessed = self.modified = True
        self._assigned_key = None
        self.core.regenerate()
        self.core.create()

    async def acycle_key(self) -> None:
        self.cycle_key()

    @property
    def principal(self) -> Optional[str]:
        """The name of the user that has logged in, in any site behind this Cloakroom."""
        return self.core.principal

    def login(self, name: str) -> None:
        """Makes a user the principal, for sites without `django.contrib.auth`, whose log-in does so by itself."""
        self.accessed = self.modified = True
        self.core.login(name)

    def logout(self) -> None:
        """Removes the principal and keeps the values."""
        self.accessed = self.modified = True
        self.core.logout()

    def exists(self, session_key: Optional[str]) -> bool:
        if not session_key:
            return False
        if session_key == self._get_key():
            self.core.reload()
            return not self.core.is_new
        if not client().settings.service_token:
            return False
        return client().service("GET", f"/{urllib.parse.quote(session_key, safe='')}").status == 200

    def create(self) -> None:
        """Creates the session with the response, or with the next save. Its key is known at once."""
        self.core.create()
        self.modified = True

    def save(self, must_create: bool = False) -> None:
        if must_create and not self.core.is_new:
            raise CreateError
        if self.core.is_new and self.core.is_worth_creating:
            self.core.create()
        try:
            patch = self.core.patch()
            if patch is not None:
                self.core.send(patch, drop=False)
        except SessionLost:
            raise UpdateError from None

    def delete(self, session_key: Optional[str] = None) -> None:
        if session_key is None or session_key == self._get_key():
            if not self.core.is_empty:
                self.core.destroy()
                self.core.save()
            return
        client().service("DELETE", f"/{urllib.parse.quote(session_key, safe='')}")

    def load(self) -> dict[str, Any]:
        return self.core.reload()

    @classmethod
    def clear_expired(cls) -> None:
        """Does nothing: Cloakroom removes expired sessions itself."""


class SessionMiddleware(StockMiddleware):
    """Django's SessionMiddleware, for Cloakroom: it sets no cookie, and writes with the response."""

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        client()  # wrong settings fail now, and not each request
        outer = _outer_middleware()
        self.can_use_header = outer is not None and not outer

    def process_request(self, request: Any) -> Optional[HttpResponse]:
        _environ.set(None)
        if client().has_fallback(header_of(request.META)):
            request.session = _stock_store(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
            return None
        try:
            request.session = SessionStore.of_request(request.META)
        except Refused as error:
            return _page(error)
        return None

    def process_response(self, request: Any, response: Any) -> Any:
        session = getattr(request, "session", None)
        if not isinstance(session, SessionStore):
            return super().process_response(request, response) if session is not None else response
        core = session.core
        if core.failure and response.status_code == 500:
            return _page(core.failure)
        if session.accessed:
            patch_vary_headers(response, ("Cookie",))
        try:
            patch = core.patch()
            if patch is not None and response.status_code >= 500:
                # As with Django's own: flush() and cycle_key() act at once, values are not saved.
                patch = {name: patch[name] for name in ("destroy", "rotate") if name in patch} or None
            if patch is not None:
                # The page is of this request alone, and its header would change the session of another visitor.
                request._cache_update_cache = False
                header = core.header(patch, response.status_code) if self.can_use_header else None
                if header is None:
                    core.send(patch)
                else:
                    response["X-Session-Patch"] = header
        except RejectedValue:
            raise
        except CloakroomError as error:
            return _page(error)
        if response.streaming and getattr(response, "file_to_stream", None) is None:
            finish = _finish_async if getattr(response, "is_async", False) else _finish
            response.streaming_content = finish(core, response.streaming_content)
        return response


def separate_caches(environ: dict[str, Any], core: DjangoSession) -> None:
    """Gives the request a cookie that differs by session, so that Django's caches keep pages of sessions apart.

    Cloakroom removes its own cookie, so `Vary: Cookie` alone would let all visitors share their pages.
    """
    name = settings.SESSION_COOKIE_NAME
    pairs = environ.get("HTTP_COOKIE", "").split(";")
    # A visitor must not choose the cookie.
    kept = [pair for pair in pairs if pair.strip() and pair.partition("=")[0].strip() != name]
    if (key := core.cache_key) is not None:
        kept.append(f" {name}={hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}")
    if kept != pairs:
        environ["HTTP_COOKIE"] = ";".join(kept).strip()
    if not kept:
        environ.pop("HTTP_COOKIE", None)


def _outer_middleware() -> Optional[list[str]]:
    """Returns the middleware outside of this one that may replace responses, or None if this one is not listed."""
    outer: list[str] = []
    for name in settings.MIDDLEWARE:
        kind = import_string(name)
        if isinstance(kind, type) and issubclass(kind, SessionMiddleware):
            return outer
        if name not in KEEPS_RESPONSES:
            outer.append(name)
    return None


def _finish(core: DjangoSession, content: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from content
    except GeneratorExit:  # the visitor has left
        core.finish()
        raise
    core.finish()


async def _finish_async(core: DjangoSession, content: Any) -> AsyncIterator[bytes]:
    try:
        async for part in content:
            yield part
    except (GeneratorExit, asyncio.CancelledError):  # the visitor has left
        await sync_to_async(core.finish)()
        raise
    await sync_to_async(core.finish)()


def _page(error: CloakroomError) -> HttpResponse:
    headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
    return HttpResponse(PAGES[error.status][1], status=error.status, headers=headers)


def _stock_store(session_key: Optional[str]) -> SessionBase:
    # Not imported before: it needs a model.
    from django.contrib.sessions.backends.db import SessionStore as StockStore

    return StockStore(session_key)


def _log_in(sender: Any, request: Any, user: Any, **kwargs: Any) -> None:
    session = getattr(request, "session", None)
    if isinstance(session, SessionStore):
        # The name, which other sites know, not the primary key.
        session.core.login(user.get_username(), AUTH_KEYS)


user_logged_in.connect(_log_in)


def expiry(value: Any) -> Any:
    """Returns the expiry for what `set_expiry()` has stored: seconds, 0 for the browser's end, or a date."""
    if value is None:
        return None
    if isinstance(value, str):
        return {"at": datetime.fromisoformat(value).timestamp()}
    if value == 0:
        return {"browser_close": True}
    return {"idle": value} if value >= 1 else {"at": time.time() + value}


def _own_serializer() -> Any:
    kind = import_string(settings.SESSION_SERIALIZER)
    return None if kind is JSONSerializer else kind()


def _writes_json(serializer: Any) -> bool:
    try:
        return bool(json.loads(serializer.dumps([])) == [])
    except ValueError:
        return False


def principal_sessions(user: Any) -> list[dict[str, Any]]:
    """Returns the sessions of a user, e.g. for a page "your devices". Needs the service token."""
    found: list[dict[str, Any]] = []
    query = {"principal": user.get_username()}
    while True:
        page = client().service("GET", "", **query).json()
        found += page["sessions"]
        if not page.get("next"):
            return found
        query["cursor"] = page["next"]


def end_principal_sessions(user: Any) -> int:
    """Logs a user out everywhere; returns how many sessions that ended. Needs the service token."""
    return int(client().service("DELETE", "", principal=user.get_username()).json()["destroyed"])


@checks.register(checks.Tags.security)
def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    if __name__ != settings.SESSION_ENGINE:
        return []
    found: list[checks.CheckMessage] = []
    try:
        client()
    except (OSError, ValueError) as error:
        found.append(checks.Error(f"The settings of Cloakroom are not valid: {error}", id="cloakroom.E001"))
    stock = "django.contrib.sessions.middleware.SessionMiddleware"
    if stock in settings.MIDDLEWARE:
        hint = f'Replace it by "{__name__}.SessionMiddleware".'
        text = "Django's SessionMiddleware sets a second cookie, and does not work under ASGI."
        found.append(checks.Warning(text, hint=hint, id="cloakroom.W001"))
    if outer := _outer_middleware():
        text = f"Middleware outside of SessionMiddleware may replace responses: {', '.join(outer)}."
        hint = "Move SessionMiddleware above it. Until then each page that changes the session makes a call."
        found.append(checks.Warning(text, hint=hint, id="cloakroom.W003"))
    return found


@checks.register(checks.Tags.security, deploy=True)
def check_deployment(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    if __name__ != settings.SESSION_ENGINE or settings.SECURE_PROXY_SSL_HEADER:
        return []
    text = "SECURE_PROXY_SSL_HEADER is not set, so Django takes https requests for http and refuses their forms."
    hint = 'SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")'
    return [checks.Warning(text, hint=hint, id="cloakroom.W002")]
