"""Sessions for Flask, and for Flask-Login if it is installed.

app = Flask(__name__)
Cloakroom(app)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Callable, Optional

from flask import Flask, Request, Response
from flask import session as current_session
from flask.json.tag import TaggedJSONSerializer
from flask.sessions import SecureCookieSessionInterface, SessionInterface, SessionMixin

from .client import Client
from .errors import PAGES, CloakroomError, NotThroughCloakroom, Unavailable, Untrusted
from .session import UNCHANGED, Session
from .settings import Settings
from .values import TAG, Tagged, from_json, is_plain, to_json
from .wsgi import FinishingBody, header_of, respond

ENVIRON_KEY = "cloakroom.flask_session"
PERMANENT_KEY = "_permanent"
LOGIN_KEYS = ("_user_id", "_fresh", "_id", "_remember", "_remember_seconds")
FLASHES_KEY = "_flashes"
tagged_json = TaggedJSONSerializer()


class FlaskSession(Session, SessionMixin):
    """A session as Flask's: `clear()` ends it, `permanent` gives it the lifetime of the application."""

    permanent_lifetime = 0
    modified = False

    @property
    def accessed(self) -> bool:
        return self._is_accessed

    @accessed.setter
    def accessed(self, value: bool) -> None:
        self._is_accessed = value

    _is_accessed = False

    def _load(self) -> None:
        self._is_accessed = True
        super()._load()

    def __contains__(self, key: Any) -> bool:
        # Flask-Login asks for this after each request, and stores it never longer than for one.
        if key == "_remember" and not self._is_loaded:
            return False
        return super().__contains__(key)

    def clear(self) -> None:
        self.destroy()

    @property
    def sid(self) -> Optional[str]:
        """The id, under the name that Flask-Session gives it."""
        return self.id

    @property
    def new(self) -> bool:  # type: ignore[override]
        return self.is_new

    def to_json(self, value: Any, key: str = "") -> Any:
        if key == FLASHES_KEY and _are_plain_flashes(value):
            return [list(flash) for flash in value]  # not tagged, so that parallel requests append to it
        if isinstance(value, (bytes, bytearray, Tagged)) or is_plain(value):
            return to_json(value)
        form = tagged_json.tag(value)
        # Within a tag of our own: plain JSON of another site, e.g. {" m": "<script>"}, is never read as Markup.
        return {TAG: {"flask": form}} if _dumps(form) != _dumps(value) else to_json(value)

    def from_json(self, value: Any, key: str = "") -> Any:
        if key == FLASHES_KEY and isinstance(value, list):
            return [tuple(flash) if isinstance(flash, list) else flash for flash in value]
        if isinstance(value, dict) and isinstance(value.get(TAG), dict) and "flask" in value[TAG]:
            # The loader for the whole value: an element of a list can be tagged, too.
            return tagged_json.loads(json.dumps(value[TAG]["flask"]))
        return from_json(value)

    def expiry_change(self, changed: Mapping[str, Any], missing: Iterable[str]) -> Any:
        if PERMANENT_KEY in missing:
            return None
        if PERMANENT_KEY in changed:
            return {"idle": self.permanent_lifetime} if changed[PERMANENT_KEY] else None
        return UNCHANGED


class CloakroomInterface(SessionInterface):
    """Opens and saves the sessions of requests."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.stock = SecureCookieSessionInterface()

    def open_session(self, app: Flask, request: Request) -> Any:
        headers = header_of(request.environ)
        if self.client.has_fallback(headers):
            return self.stock.open_session(app, request)
        session = request.environ.get(ENVIRON_KEY)
        if session is None:
            session = self.client.session(headers, FlaskSession)
        session.permanent_lifetime = max(1, int(app.permanent_session_lifetime.total_seconds()))
        return session

    def save_session(self, app: Flask, session: Any, response: Response) -> None:
        if not isinstance(session, FlaskSession):
            return self.stock.save_session(app, session, response)
        if session.accessed:
            response.vary.add("Cookie")
        if response.status_code == 500 and session.failure:
            return  # the request has failed by the session, which would fail again
        try:
            patch = session.commit(response.status_code)
        except (Unavailable, Untrusted) as error:
            # Nothing of the page goes out: its cookies would log in, and a cache would keep it.
            response.direct_passthrough = False
            response.headers.clear()
            response.set_data(PAGES[error.status][1])
            response.status_code = error.status
            response.mimetype = "text/plain"
            response.headers["Cache-Control"] = "no-store"
            return
        if patch is not None:
            response.headers["X-Session-Patch"] = patch
        if response.is_streamed and not response.direct_passthrough:
            response.response = _Finishing(response.response, session)

    def regenerate(self, session: FlaskSession) -> None:
        """Gives the session another id, as Flask-Session does."""
        session.regenerate()


class _Finishing(FinishingBody):
    def __init__(self, body: Any, session: Session) -> None:
        super().__init__(body, session)
        self.parts = iter(body)

    def __iter__(self) -> _Finishing:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.parts)
        except StopIteration:
            self.finish()
            raise
        except BaseException:
            self.is_done = True  # what an error has interrupted is not written
            raise


class Cloakroom:
    """Gives an application the sessions of Cloakroom.

    With Flask-Login, a log-in sets the principal, which is `username(user)`: the attribute `username`, or else what
    `get_id()` returns.
    """

    def __init__(self, app: Optional[Flask] = None, username: Optional[Callable[[Any], str]] = None) -> None:
        self.username = username or _username
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        client = Client(Settings.load(app.config.get))
        app.session_interface = CloakroomInterface(client)
        app.wsgi_app = _Guard(app.wsgi_app, client)  # type: ignore[method-assign]
        app.register_error_handler(Unavailable, _page)
        app.register_error_handler(Untrusted, _page)
        app.register_error_handler(NotThroughCloakroom, _page)
        self._connect_flask_login(app)

    def _connect_flask_login(self, app: Flask) -> None:
        try:
            from flask_login import signals
        except ImportError:
            return

        def log_in(sender: Any, user: Any, **kwargs: Any) -> None:
            if isinstance(session := _session(), FlaskSession):
                session.login(self.username(user), LOGIN_KEYS)

        def log_out(sender: Any, **kwargs: Any) -> None:
            if isinstance(session := _session(), FlaskSession):
                session.logout()

        def protect(sender: Any, **kwargs: Any) -> None:
            # Sent for every session that is not Flask-Login's, too, e.g. one with a log-in of another site.
            session = _session()
            if isinstance(session, FlaskSession) and session.had("_user_id") and "_user_id" not in session:
                session.logout()

        for signal, receiver in [
            (signals.user_logged_in, log_in),
            (signals.user_loaded_from_cookie, log_in),
            (signals.user_logged_out, log_out),
            (signals.session_protected, protect),
        ]:
            signal.connect(receiver, app, weak=False)


class _Guard:
    """Answers requests that are not from this Cloakroom, before the application sees them."""

    def __init__(self, application: Callable[..., Iterable[bytes]], client: Client) -> None:
        self.application = application
        self.client = client

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = header_of(environ)
        if not self.client.has_fallback(headers):
            try:
                environ[ENVIRON_KEY] = self.client.session(headers, FlaskSession)
            except Untrusted as error:
                return respond(start_response, error)
        return self.application(environ, start_response)


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return ""


def _are_plain_flashes(value: Any) -> bool:
    return isinstance(value, list) and all(type(flash) is tuple and is_plain(list(flash)) for flash in value)


def _session() -> Any:
    return current_session._get_current_object()  # type: ignore[attr-defined]


def _username(user: Any) -> str:
    return str(getattr(user, "username", None) or user.get_id())


HEADERS = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}


def _page(error: CloakroomError) -> tuple[str, int, dict[str, str]]:
    return PAGES[error.status][1], error.status, HEADERS
