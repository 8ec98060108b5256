"""Pickle for states that nothing else can save, signed."""

import pickle
from collections.abc import Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, cast

from ..errors import SettingsError, StateDecodeError, StateEncodeError
from .base import Serializer, T
from .refusal import is_shortage

_SIZE = 32
_MIN_KEY, _MAX_KEY = 32, 64  # the upper bound is BLAKE2b's


class PickleSerializer(Serializer):
    """Save anything that `pickle` can, and load only what holders of the key have saved.

    Loading a pickle runs whatever code it names, so bytes reach `pickle` only behind a valid
    signature: keyed BLAKE2b over the class and the pickle, compared in constant time. Whoever has
    the key can run code in every process that loads with it.

    Classes found by name when loading must still be where they were; there is no migration.
    """

    def __init__(self, *, key: bytes | Sequence[bytes]) -> None:
        """Check the keys.

        Args:
            key: 32 to 64 random bytes, or several such keys: the first one signs, all are accepted.

        Raises:
            SettingsError: There is no key, or one of another length.
        """
        keys = (key,) if isinstance(key, bytes) else tuple(key)
        if not keys or not all(type(k) is bytes and _MIN_KEY <= len(k) <= _MAX_KEY for k in keys):
            allowed = f"bytes of length {_MIN_KEY} to {_MAX_KEY}, or a sequence of such"
            raise SettingsError(
                f"PickleSerializer's key cannot be used: expected {allowed}",
                variable="key",
                allowed=allowed,
            )
        self._keys = keys

    def serialize(self, state: object, cls: type[T]) -> bytes:
        kind = _runtime_class(cls)
        if type(state) is not kind:
            raise StateEncodeError(cls.__name__, f"got a {type(state).__name__}")
        try:
            data = pickle.dumps(state, protocol=5)
        except Exception as cause:  # __reduce__ and __getstate__ are anybody's code
            error = StateEncodeError(cls.__name__, f"pickle cannot save it ({_what(cause)})")
        else:
            return _sign(self._keys[0], cls, data) + data
        raise error

    def deserialize(self, data: bytes, cls: type[T]) -> T:
        signature, pickled = data[:_SIZE], data[_SIZE:]
        # No early exit: which of the keys fits is nobody's business.
        if not sum([compare_digest(signature, _sign(key, cls, pickled)) for key in self._keys]):
            raise StateDecodeError("has no valid signature")
        try:
            state: Any = pickle.loads(pickled)  # noqa: S301 - signed by a holder of the key
        except Exception as cause:  # its text may show what was stored
            if is_shortage(cause):
                raise
            error = StateDecodeError(f"pickle cannot load it ({_what(cause)})")
        else:
            if type(state) is _runtime_class(cls):
                return cast("T", state)
            error = StateDecodeError(f"holds a {type(state).__name__}, not a {cls.__name__}")
        raise error


def _sign(key: bytes, cls: type, pickled: bytes) -> bytes:
    mac = blake2b(key=key, digest_size=_SIZE, person=b"statemgr pickle")
    # The class goes in, so that one state's bytes are not accepted for another's.
    name = f"{cls.__module__}:{cls.__qualname__}".encode()
    mac.update(len(name).to_bytes(8, "big"))
    mac.update(name)
    mac.update(pickled)
    return mac.digest()


def _runtime_class(cls: type) -> type:
    """Return the class that instances have: a `TypedDict` has none of its own."""
    return dict if issubclass(cls, dict) and hasattr(cls, "__required_keys__") else cls


def _what(cause: Exception) -> str:
    return "nested too deeply" if isinstance(cause, RecursionError) else type(cause).__name__
