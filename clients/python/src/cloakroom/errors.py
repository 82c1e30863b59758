"""Errors of the client."""

from __future__ import annotations

import logging

logger = logging.getLogger("cloakroom")

# Sent if the framework has no page of its own for the error.
PAGES = {
    403: ("403 Forbidden", "This request did not come through Cloakroom.\n"),
    500: ("500 Internal Server Error", "Internal server error.\n"),
    503: ("503 Service Unavailable", "The session is unavailable. Try again later.\n"),
}


class CloakroomError(Exception):
    """An error of the session, with the status of the response that it causes."""

    status = 500
    is_logged = False
    """Whether the log has the error, so that a framework need not log it again."""


class NotThroughCloakroom(CloakroomError):
    """The request has no session headers, so it has no session."""


class Untrusted(CloakroomError):
    """The request has session headers that are not from this Cloakroom."""

    status = 403


class Unavailable(CloakroomError):
    """The session API did not answer, or its store is unavailable."""

    status = 503


class RejectedValue(CloakroomError, ValueError):
    """A key or value cannot be stored, or the session would be too large."""


class SessionLost(CloakroomError):
    """Another request destroyed or rotated the session; nothing was written."""
