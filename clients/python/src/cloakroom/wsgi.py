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
        return _Body(self, body)

    def next_chunk(self, parts: Iterator[bytes]) -> Optional[bytes]:
        """Returns the next bytes of the body, and sends the head before the first ones; None at the end."""
        try:
            for chunk in parts:
                if chunk:
                    self.send_head()
                    return chunk
            self.send_head()
        except CloakroomError as error:
            if self.is_sent:
                raise
            self.is_sent = True
            self.page = respond(self.start_response, error)
        return None


class FinishingBody:
    """The body of a response, after which the session is written, also if the visitor leaves before its end."""

    def __init__(self, body: Any, session: Session) -> None:
        self.body = body
        self.session = session
        self.is_done = False

    def close(self) -> None:
        try:
            if hasattr(self.body, "close"):
                self.body.close()
        finally:
            self.finish()

    def finish(self) -> None:
        if not self.is_done:
            self.is_done = True
            self.session.finish()


class _Body(FinishingBody):
    def __init__(self, response: _Response, body: Iterable[bytes]) -> None:
        super().__init__(body, response.session)
        self.response = response
        self.parts: Optional[Iterator[bytes]] = None
        self.page: Optional[Iterator[bytes]] = None

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        if self.page is None:
            try:
                self.parts = iter(self.body) if self.parts is None else self.parts
                chunk = self.response.next_chunk(self.parts)
            except BaseException:
                self.is_done = True  # as for an application that raises at once, nothing is written
                raise
            if chunk is not None and self.response.page is None:
                return chunk
            self.page = iter(self.response.page or ())
            if self.response.page is None:
                self.finish()  # before the end, so that the next request of the visitor finds the changes
        return next(self.page)


def respond(start_response: Callable[..., Any], error: CloakroomError) -> list[bytes]:
    status, text = PAGES[error.status]
    body = text.encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(status, [*headers, ("Cache-Control", "no-store")])
    return [body]
