"""Who may call what. Every route needs a key unless it is on the list of open ones."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from penstock.api.errors import Forbidden, Unauthorized
from penstock.api.http import Call
from penstock.core.errors import ConfigError

OPEN_ROUTES = frozenset({"/health", "/live", "/ready"})
MIN_KEY_CHARS = 8


class Gate:
    """Checks API keys. Without keys everything is open."""

    def __init__(self, keys: Iterable[str], open_routes: Iterable[str] = OPEN_ROUTES) -> None:
        keys = tuple(keys)
        if any(len(key) < MIN_KEY_CHARS for key in keys):
            raise ConfigError(f"an API key has fewer than {MIN_KEY_CHARS} characters: take a longer one")
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
        self._open = frozenset(open_routes)

    @property
    def is_closed(self) -> bool:
        return bool(self._digests)

    def admit(self, call: Call) -> str:
        """A short name of the key that the call came with; empty without keys. Raises Unauthorized.

        Decided on the raw path of the request, before any route is looked up: an unknown path needs a key as well.
        """
        if not self._digests or call.path in self._open:
            return ""
        digest = hashlib.sha256(_key(call).encode("latin-1")).digest()  # the bytes as they came
        # every key is compared, so that the time does not tell which one was near
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized("a valid API key is needed: send it as `Authorization: Bearer KEY`")
        return digest.hex()[:16]


def check_origin(call: Call) -> None:
    """Raise Forbidden for a web page of another origin: a browser lets it post to a server on the user's machine."""
    origin = call.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != call.headers.get("host"):
        raise Forbidden("a web page of another origin may not use this server")


def _key(call: Call) -> str:
    scheme, _, key = call.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else call.headers.get("x-api-key", "")
