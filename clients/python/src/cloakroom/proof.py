"""The proof that session headers come from Cloakroom."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from typing import Callable, Optional

NAMES = ("url", "token", "id", "next-id", "principal", "version", "data", "data-omitted", "error")
SIGNED = tuple(f"x-session-{name}" for name in NAMES)
MAX_AGE = 300


def is_proven(headers: Callable[[str], Optional[str]], secrets: Iterable[bytes], now: Optional[float] = None) -> bool:
    """Verifies `X-Session-Proof` with any of the secrets.

    `headers` returns the value of a header, as Latin-1 text. Servers join the values of a doubled header, which
    then does not match the signed text.
    """
    proof = re.fullmatch(r"v1 t=([0-9]{1,12}) m=([A-Za-z0-9_-]{43})", headers("x-session-proof") or "")
    if not proof:
        return False
    found = [(name, headers(name)) for name in SIGNED]
    lines = ["cloakroom-proof-v1", proof[1], *(f"{name}:{value}" for name, value in found if value is not None)]
    text = "\n".join(lines).encode("latin-1", "replace")
    is_right = False
    for secret in secrets:
        mac = base64.urlsafe_b64encode(hmac.new(secret, text, hashlib.sha256).digest()).rstrip(b"=")
        is_right |= hmac.compare_digest(mac, proof[2].encode())
    return is_right and abs((time.time() if now is None else now) - int(proof[1])) <= MAX_AGE
