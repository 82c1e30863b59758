"""Sessions for any ASGI application: `scope["session"]`, in place of Starlette's SessionMiddleware.

app.add_middleware(cloakroom.asgi.SessionMiddleware)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, MutableMapping
from typing import Any, Callable, Optional

from .client import Client
from .errors import PAGES, CloakroomError, Untrusted
from .session import Session
from .settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header_of(scope: Scope) -> Callable[[str], Optional[str]]:
    """Returns the headers of an ASGI request, by name in lower case; doubled ones are joined, as in WSGI."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key.startswith("x-session-"):
            found[key] = f"{found[key]},{text}" if key in found else text
    return found.get


class AsgiSession(Session):
    """A session as Starlette's: `clear()` ends it."""

    _is_accessed = False

    def mark_accessed(self) -> None:
        self._is_accessed = True

    @property
    def accessed(self) -> bool:
        return self._is_accessed or self._is_loaded

    @property
    def modified(self) -> bool:
        return self.patch() is not None

    def clear(self) -> None:
        self.destroy()

    async def aload(self) -> None:
        """Reads the session without blocking the event loop. Without header exchange, call it first."""
        await asyncio.to_thread(self.load)


class SessionMiddleware:
    """Adds the session to requests and WebSockets, and writes it when the head of the response leaves.

    With `preload`, sessions are read before the application runs, even if it does not use them.
    """

    def __init__(self, app: App, settings: Optional[Settings] = None, preload: bool = False) -> None:
        self.app = app
        self.client = Client(settings)
        self.preload = preload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = header_of(scope)
        if self.client.has_fallback(headers):
            return await self.app(scope, receive, send)
        response = _Response(scope, send)
        try:
            session = response.session = scope["session"] = self.client.session(headers, AsgiSession)
        except Untrusted as error:
            return await response.fail(error)
        try:
            if self.preload and headers("x-session-token"):
                await session.aload()
            await self.app(scope, receive, response.send)
        except CloakroomError as error:
            if response.is_started:
                raise
            return await response.fail(error)
        except BaseException:
            if response.has_left:
                await response.finish()
            raise
        await response.finish()


class _Response:
    session: AsgiSession

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.send_message = send
        self.is_started = self.has_failed = self.has_left = False

    async def send(self, message: Message) -> None:
        if self.has_failed:
            return
        if message["type"] in ("http.response.start", "websocket.accept") and not self.is_started:
            status = message.get("status", 101)
            try:
                if status == 500 and self.session.failure:
                    raise self.session.failure
                await self.commit(message, status)
            except CloakroomError as error:
                return await self.fail(error)
        elif message["type"] == "websocket.close" or (
            message["type"] == "http.response.body" and not message.get("more_body")
        ):
            # Before the end, so that the next request of the visitor finds the changes.
            await self.finish()
        self.is_started = True
        try:
            await self.send_message(message)
        except (OSError, asyncio.CancelledError):
            self.has_left = True  # the visitor, before the end
            raise

    async def finish(self) -> None:
        with contextlib.suppress(CloakroomError):  # logged by the session
            if not self.has_failed and self.session.patch() is not None:
                await asyncio.to_thread(self.session.finish)

    async def commit(self, message: Message, status: int) -> None:
        headers = list(message.get("headers", []))
        session, patch = self.session, self.session.patch()
        if session.accessed and self.scope["type"] == "http":
            headers.append((b"vary", b"Cookie"))
        if patch is not None:
            header = session.header(patch, status)
            if header is None:
                await asyncio.to_thread(session.send, patch)
            else:
                headers.append((b"x-session-patch", header.encode()))
        message["headers"] = headers

    async def fail(self, error: CloakroomError) -> None:
        self.has_failed = self.is_started = True
        if self.scope["type"] == "websocket":
            # The server answers the handshake with 403.
            return await self.send_message({"type": "websocket.close", "code": 1011})
        body = PAGES[error.status][1].encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        headers.append((b"cache-control", b"no-store"))
        await self.send_message({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send_message({"type": "http.response.body", "body": body})
