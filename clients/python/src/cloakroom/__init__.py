"""Sessions of web frameworks in Cloakroom.

`cloakroom.django`, `cloakroom.flask`, `cloakroom.asgi` and `cloakroom.wsgi` connect a framework. This package has
what they share.
"""

from __future__ import annotations

from .client import Client
from .errors import (
    CloakroomError,
    NotThroughCloakroom,
    RejectedValue,
    SessionLost,
    Unavailable,
    Untrusted,
)
from .session import Session
from .settings import Settings
from .values import Tagged

__version__ = "0.1.0"

__all__ = [
    "Client",
    "CloakroomError",
    "NotThroughCloakroom",
    "RejectedValue",
    "Session",
    "SessionLost",
    "Settings",
    "Tagged",
    "Unavailable",
    "Untrusted",
]
