"""Settings, from the environment or from the framework's own."""

from __future__ import annotations

import os
import pathlib
import re
from dataclasses import dataclass
from typing import Any, Callable, Optional

PREFIX = "CLOAKROOM_CLIENT_"
MIN_SECRET_BYTES = 32


@dataclass(frozen=True)
class Settings:
    """What a client has to know. `secrets` are the texts of the files, as bytes."""

    url: str = "http://127.0.0.1:8081/_session"
    secrets: tuple[bytes, ...] = ()
    trust: Optional[str] = None
    principal: Optional[str] = None
    fallback: Optional[str] = None
    service_token: Optional[str] = None

    def __post_init__(self) -> None:
        if not re.match(r"https?://|http\+unix://", self.url):
            raise ValueError(f"{PREFIX}URL is not a URL: {self.url!r}; expected e.g. http://127.0.0.1:8081/_session")
        if self.trust not in (None, "network"):
            raise ValueError(f"{PREFIX}TRUST must be 'network' or unset, not {self.trust!r}")
        if self.fallback not in (None, "stock"):
            raise ValueError(f"{PREFIX}FALLBACK must be 'stock' or unset, not {self.fallback!r}")
        if any(len(secret) < MIN_SECRET_BYTES for secret in self.secrets):
            raise ValueError(f"a secret of {PREFIX}SECRETS has less than {MIN_SECRET_BYTES} bytes")

    @classmethod
    def load(cls, own: Callable[[str], Any] = lambda name: None) -> Settings:
        """Reads the settings; those that `own` returns take precedence over the environment."""

        def value(name: str) -> Any:
            return own(PREFIX + name) or os.environ.get(PREFIX + name) or None

        files = value("SECRETS") or ()
        files = [file for file in files.split(":") if file] if isinstance(files, str) else files
        token = value("SERVICE_TOKEN")
        return cls(
            url=(value("URL") or cls.url).rstrip("/"),
            secrets=tuple(read_secret(file, "SECRETS", MIN_SECRET_BYTES) for file in files),
            trust=value("TRUST"),
            principal=value("PRINCIPAL"),
            fallback=value("FALLBACK"),
            service_token=read_secret(token, "SERVICE_TOKEN").decode() if token else None,
        )

    @property
    def trusts_network(self) -> bool:
        """Whether session headers count without a proof."""
        return self.trust == "network"


def read_secret(file: str | os.PathLike[str], setting: str, min_bytes: int = 0) -> bytes:
    """Returns the content of a file without one line end at its end."""
    try:
        secret = re.sub(rb"\r?\n\Z", b"", pathlib.Path(file).read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read the file {file} of {PREFIX}{setting}: {error.strerror}") from None
    if len(secret) < min_bytes:
        raise ValueError(f"the secret in {file}, a file of {PREFIX}{setting}, has less than {min_bytes} bytes")
    return secret
