"""What logs and errors may say: idents by a keyed digest, URLs without their password."""

import hashlib
import secrets
from urllib.parse import urlsplit, urlunsplit


class Redaction:
    """Name idents in messages so that they can be told apart, but not told.

    The digest is keyed, so that a guessed ident cannot be confirmed from a log. Without a
    key of its own each manager draws one: then names agree within one manager only.
    """

    __slots__ = ("_key", "_show_idents")

    def __init__(self, *, show_idents: bool = False, key: bytes | None = None) -> None:
        self._show_idents = show_idents
        self._key = hashlib.blake2b(key or secrets.token_bytes(32), digest_size=32).digest()

    def ident(self, lock_key: str) -> str:
        """Return a name for the ident behind `lock_key`, such as `ident #1c0ffee2`."""
        if self._show_idents:
            return f"ident {lock_key!r}"
        digest = hashlib.blake2b(lock_key.encode(), key=self._key, digest_size=4)
        return f"ident #{digest.hexdigest()}"

    def state(self, cache_key: str) -> str:
        """Return a name for the state under `cache_key`: its class and its ident's name."""
        lock_key, _, class_key = cache_key.partition("/")
        return f"{class_key} of {self.ident(lock_key)}"


def redact_url(url: str) -> str:
    """Return `url` with its password, if it has one, replaced by `***`."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "***"
    if password is None:
        return url
    user_info, _, hosts = parts.netloc.rpartition("@")
    user = user_info.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{hosts}"))
