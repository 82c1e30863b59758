"""Sessions for any WSGI application: `environ["cloakroom.session"]`.

    application = cloakroom.wsgi.Middleware(application)

Applications written for Beaker find the session in `environ["beaker.session"]`, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Callable, Optional

from .client import Client
from .errors import PAGES, CloakroomError, Untrusted
from .session import Session
from .settings import Settings

Environ = dict[str, Any]


def header_of(environ: Environ) -> Callable[[str], Optional[str]]:
    """Returns the headers of a WSGI request, by name in lower case."""
    return lambda name: environ.get("HTTP_" + name.upper().replace("-", "_"))


class WsgiSession(Session):
    """A session with the methods of Beaker's."""

    def delete(self) -> None:
        self.destroy()

    invalidate = delete

    def persist(self) -> None:
        self.save()


class Middleware:
    """Adds the session to requests, and writes it when the head of the response leaves."""

    def __init__(self, application: Callable[..., Iterable[bytes]], settings: Optional[Settings] = None) -> None:
        self.application = application
        self.client = Client(settings)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        headers = header_of(environ)
        if self.client.has_fallback(headers):
            return self.application(environ, start_response)
        try:
            session = self.client.session(headers, WsgiSession)
        except Untrusted as error:
            return respond(start_response, error)
        environ["cloakroom.session"] = environ["beaker.session"] = session
        return _Response(session, start_response).run(self.application, environ)


class _Response:
    """Holds the head until the first bytes of the body: changes before them are still in time.

    The application may start another response until then, e.g. an error page.
    """

    def __init__(self, session: Session, start_response: Callable[..., Any]) -> None:
        self.session = session
        self.start_response = start_response
        self.head: Optional[tuple[str, list[tuple[str, str]]]] = None
        self.is_sent = False
        self.page: Optional[Iterable[bytes]] = None
        self.writer: Any = None

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], Any]:
        if self.is_sent:
            return self.start_response(status, headers, exc_info)  # type: ignore[no-any-return]
        self.head = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        writer = self.send_head()
        if writer and self.page is None:
            writer(data)

    def send_head(self) -> Any:
        if self.is_sent or self.head is None:
            return self.writer
        status, headers = self.head
        self.is_sent = True
        try:
            code = int(status[:3])
            if code == 500 and self.session.failure:
                raise self.session.failure
            patch = self.session.commit(code)
        except CloakroomError as error:
            self.page = respond(self.start_response, error)
            return None
        added = [("X-Session-Patch", patch)] if patch is not None else []
        self.writer = self.start_response(status, [*headers, *added])
        return self.writer

    def run(self, application: Callable[..., Iterable[bytes]], environ: Environ) -> Iterable[bytes]:
        try:
            body = application(environ, self.start)
        except CloakroomError as error:
            if self.is_sent:
                raise
            return respond(self.start_response, error)
        file_wrapper = environ.get("wsgi.file_wrapper")
        is_file = isinstance(file_wrapper, type) and isinstance(body, file_wrapper)
        if (isinstance(body, (list, tuple)) or is_file) and self.head:
            # Unchanged, so that the server can tell its length, or send the file itself.
            self.send_head()
            return self.page if self.page is not None else body
        return self.stream(body)

    def stream(self, body: Iterable[bytes]) -> Iterator[bytes]:
        try:
            try:
                for chunk in body:
                    if chunk:
                        self.send_head()
                        if self.page is not None:
                            break
                        yield chunk
                self.send_head()
            except CloakroomError as error:
                if self.is_sent:
                    raise
                self.is_sent = True
                self.page = respond(self.start_response, error)
            if self.page is not None:
                yield from self.page
        finally:
            if hasattr(body, "close"):
                body.close()
            self.session.finish()


def respond(start_response: Callable[..., Any], error: CloakroomError) -> list[bytes]:
    status, text = PAGES[error.status]
    body = text.encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, [*headers, ("Cache-Control", "no-store")])
    return [body]
