"""What logs and errors may say: idents by a keyed digest, URLs without their password."""

import os
import re

_is_scheme = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*").fullmatch
_is_user = re.compile(r"[\w.%+-]*").fullmatch


class Redaction:
    """Name idents in messages so that they can be told apart, but not told.

    The digest is keyed, so that a guessed ident cannot be confirmed from a log. Without a
    key of its own each manager draws one: then names agree within one manager only.
    """

    __slots__ = ("_key", "_show_idents")

    def __init__(self, *, show_idents: bool = False, key: bytes | None = None) -> None:
        self._show_idents = show_idents
        self._key = key or os.urandom(32)

    def ident(self, lock_key: str) -> str:
        """Return a name for the ident behind `lock_key`, such as `ident #1c0ffee2`."""
        if self._show_idents:
            return f"ident {lock_key!r}"
        from hashlib import blake2b  # slow to import, and most programs never get here

        key = blake2b(self._key, digest_size=32).digest()
        return f"ident #{blake2b(lock_key.encode(), key=key, digest_size=4).hexdigest()}"

    def state(self, cache_key: str) -> str:
        """Return a name for the state under `cache_key`: its class and its ident's name."""
        lock_key, _, class_key = cache_key.partition("/")
        return f"{class_key} of {self.ident(lock_key)}"


def redact_url(url: str) -> str:
    """Return `url` without the passwords in it; what cannot be told apart from one goes too.

    People paste passwords into URLs as they are, so all up to the last `@` is taken for
    credentials, whatever it holds.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or not _is_scheme(scheme):
        return "***" if "@" in url or "password" in url.lower() else url
    credentials, at, location = rest.rpartition("@")
    if "?" in credentials:  # a password with a question mark in it, or one in the query with an @
        return f"{scheme}://***"
    user, colon, _ = credentials.partition(":")
    if not _is_user(user):
        user = "***"
    location, question, query = location.partition("?")
    if "password" in query.lower():
        query = "***"
    return f"{scheme}://{user}{colon}{'***' if colon else ''}{at}{location}{question}{query}"
