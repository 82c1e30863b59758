"""The client of a site: its settings, and its connections to the session API."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Mapping
from typing import Any, Callable, Optional, TypeVar

from .api import Answer, Api
from .errors import NotThroughCloakroom, RejectedValue, SessionLost, Unavailable, Untrusted, logger
from .proof import SIGNED, is_proven
from .session import Session
from .settings import Settings

S = TypeVar("S", bound=Session)
Headers = Callable[[str], Optional[str]]

# The session is not there any more, or it is not as it was read; what was to be written does not fit.
LOST = {"session_gone", "session_rotated", "request_gone", "not_an_array", "not_an_object"}
ELSEWHERE = "this request did not come through Cloakroom"
UNUSED = "header exchange is on, but the client has no secret: X-Session-Data is not used; set CLOAKROOM_CLIENT_SECRETS"


class Client:
    """Gives requests their sessions. A site has one."""

    def __init__(self, settings: Optional[Settings] = None) -> None:
        self.settings = settings or Settings.load()
        self.api = Api(self.settings.url)
        self._announced: set[str] = set()
        self._lock = threading.Lock()

    def has_fallback(self, headers: Headers) -> bool:
        """Returns whether a request gets the framework's own session; says so once."""
        if self.settings.fallback != "stock" or not self._is_elsewhere(headers):
            return False
        self._announce(f"{ELSEWHERE}; using the framework's own sessions")
        return True

    def _is_elsewhere(self, headers: Headers) -> bool:
        """Returns whether a request did not come through Cloakroom, or came by a route without sessions."""
        if headers("x-session-token"):
            return False
        secrets = self.settings.secrets
        has_none = all(headers(name) is None for name in (*SIGNED, "x-session-proof"))
        return not secrets or has_none or is_proven(headers, secrets)

    def _announce(self, message: str) -> None:
        """Logs what every request would repeat."""
        with self._lock:
            is_first = message not in self._announced
            self._announced.add(message)
        if is_first:
            logger.warning("%s", message)

    def session(self, headers: Headers, kind: type[S]) -> S:
        """Returns the session of a request; raises `Untrusted` if the headers are not from this Cloakroom.

        A request without session headers gets a session that raises `NotThroughCloakroom` if it is used.
        """
        settings = self.settings
        token = headers("x-session-token")
        if settings.secrets and not is_proven(headers, settings.secrets):
            raise untrusted("X-Session-Proof is missing, wrong or too old")
        if not token:
            return kind(self, fault=NotThroughCloakroom(f"{ELSEWHERE}: it has no X-Session-Token"))
        if headers("x-session-url") != settings.url:
            raise untrusted(f"X-Session-Url is {headers('x-session-url')!r}, and the client is set to {settings.url!r}")
        is_trusted = bool(settings.secrets) or settings.trusts_network
        has_values = headers("x-session-data") is not None or headers("x-session-data-omitted") is not None
        if has_values and not is_trusted:
            self._announce(UNUSED)
        return kind(self, token, headers, is_trusted=is_trusted)

    def call(self, method: str, path: str, token: str, patch: Optional[Mapping[str, Any]] = None) -> Answer:
        """Makes a call for a request; raises an error unless it succeeds, or a value is missing."""
        body = None if patch is None else json.dumps(patch, separators=(",", ":")).encode()
        answer = self.api.call(method, path, {"X-Session-Token": token, "Content-Type": "application/json"}, body)
        if answer.status < 300 or (answer.status == 404 and patch is None):
            return answer
        code, detail = answer.member("code"), answer.member("detail")
        reason = f"{answer.status} {code}" + (f": {detail}" if detail else "")
        if code in LOST:
            raise SessionLost(reason)
        if answer.status == 401:
            raise untrusted(f"the session API refuses X-Session-Token ({reason})")
        if answer.status >= 500:
            raise Unavailable(f"the session API is unavailable ({reason})")
        if answer.status in (404, 409, 410):
            # Not an error of the values, e.g. `response_committed`, `ambiguous_cookie` or `no_such_session`.
            raise Unavailable(f"the session API refuses the write ({reason})")
        raise RejectedValue(f"the session API refuses the change ({reason})")

    def service(self, method: str, path: str, patch: Optional[Mapping[str, Any]] = None, **query: str) -> Answer:
        """Makes a call for any session, with the service token."""
        token = self.settings.service_token
        if not token:
            raise NotThroughCloakroom(
                "a session outside of a request needs CLOAKROOM_CLIENT_SERVICE_TOKEN, the file of [api] service_token"
            )
        body = None if patch is None else json.dumps(patch).encode()
        path = f"s{path}?{urllib.parse.urlencode(query)}" if query else f"s{path}"
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        answer = self.api.call(method, path, headers, body)
        if answer.status >= 500:
            raise Unavailable(f"the session API is unavailable ({answer.status} {answer.member('code')})")
        if answer.status == 401:
            raise Untrusted("the session API refuses the service token")
        return answer


def untrusted(reason: str) -> Untrusted:
    error = Untrusted(f"{ELSEWHERE}: {reason}")
    error.is_logged = True
    logger.error("%s", error)
    return error
