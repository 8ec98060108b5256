"""One class's way into bytes and back: the two paths, versions, migration.

    serialized = form (1 byte) + version (MessagePack uint) + payload

The version is the class's `__state_version__`, 0 where it sets none. The form says how the
payload was written, and is all that reading goes by: a class may move from one path to the other
between two releases without losing a state.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import msgspec

from ..errors import SettingsError, StateDecodeError, StateEncodeError
from . import tagged, untagged
from .conversion import Converter
from .exactness import exact_predicate, loose_predicate
from .hints import is_typed_dict
from .refusal import TOO_DEEP, Refusal, is_shortage
from .registry import Registry

TYPED = 1
"""Written by msgspec's encoder: names and values, the types are in the annotations."""
TAGGED = 2
"""Self-describing; every value was as annotated, and must fit the annotations of today."""
LOOSE = 3
"""Self-describing; some value was not as annotated, and comes back as it was."""

_MAX_VERSION = 2**64 - 1
_UINT_WIDTH = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_pack = msgspec.msgpack.Encoder().encode


class Codec:
    """How one class is saved and loaded.

    Attributes:
        encode: Returns the bytes for a state. Raises StateEncodeError.
        decode: Returns the state for bytes. Raises StateDecodeError, or what `is_shortage` tells.
        matches: Tells whether a state takes the typed path; None if none of the class does.
        registry: The classes that its states may hold.
    """

    def __init__(self, cls: type) -> None:
        """Look at the class and generate what it needs.

        Raises:
            SettingsError: Its `__state_version__` or `__state_classes__` cannot be used.
        """
        self._cls: Any = cls
        self._kind = dict if is_typed_dict(cls) else cls
        self.registry = Registry(cls)
        self._version = _version_of(cls)
        self._migrate: Callable[..., Any] | None = getattr(cls, "__migrate__", None)
        self._converter = Converter(self.registry)
        self._typed: Callable[[bytes], Any] | None = None
        matches = exact_predicate(self.registry)
        if matches is not None:
            try:
                self._typed = msgspec.msgpack.Decoder(cls).decode
            except Exception:  # msgspec cannot tell the annotated types apart
                matches = None
        self.encode: Callable[[object], bytes] = self._encode_tagged
        self.decode: Callable[[bytes], Any] = self._decode_any
        self.matches = matches
        if matches is not None and self._typed is not None:
            self.encode = self._fast_encode(matches)
            self.decode = self._fast_decode(self._typed)

    @property
    def typed_prefix(self) -> bytes:
        """What the bytes of a state begin with that today's class has written by the typed path."""
        return self._prefix(TYPED)

    @cached_property
    def _fits(self) -> Callable[[object], bool]:
        return loose_predicate(self.registry)

    def _prefix(self, form: int) -> bytes:
        return bytes([form]) + _pack(self._version)

    def _fast_encode(self, matches: Callable[[object], bool]) -> Callable[[object], bytes]:
        prefix, pack, encode_tagged = self._prefix(TYPED), _pack, self._encode_tagged

        def encode(state: object) -> bytes:
            if matches(state):
                try:
                    return prefix + pack(state)
                except Exception:  # noqa: S110 - an int over 64 bits, a lone surrogate
                    pass
            return encode_tagged(state)

        return encode

    def _fast_decode(self, unpack: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        prefix, decode_any = self._prefix(TYPED), self._decode_any
        size = len(prefix)

        def decode(data: bytes) -> Any:
            if data.startswith(prefix):
                try:
                    return unpack(data[size:])
                except Exception:  # noqa: S110 - told below, without values in the text
                    pass
            return decode_any(data)

        return decode

    def _encode_tagged(self, state: object) -> bytes:
        name = self._cls.__name__
        if type(state) is not self._kind:
            raise StateEncodeError(name, f"got a {type(state).__name__}, not a {name}")
        try:
            data = tagged.dump(state, self.registry)
            form = TAGGED if self._fits(state) else LOOSE
        except Refusal as refusal:
            error = StateEncodeError(name + refusal.path, refusal.reason)
        except RecursionError:
            error = StateEncodeError(name, TOO_DEEP)
        except Exception as cause:  # an attribute lookup may run the class's code
            error = StateEncodeError(name, f"reading it raised {type(cause).__name__}")
        else:
            return self._prefix(form) + data
        raise error

    def _decode_any(self, data: bytes) -> Any:
        try:
            return self._decode(data)
        except StateDecodeError:
            raise
        except Refusal as refusal:
            error = StateDecodeError(f"{self._cls.__name__}{refusal.path}: {refusal.reason}")
        except msgspec.ValidationError as cause:
            error = StateDecodeError(_without_values(str(cause)))
        except Exception as cause:  # its text may show what was stored
            if is_shortage(cause):
                raise
            deep = isinstance(cause, RecursionError)
            how = TOO_DEEP if deep else f"the bytes are damaged ({type(cause).__name__})"
            error = StateDecodeError(how)
        raise error

    def _decode(self, data: bytes) -> Any:
        form, version, payload = _head(data)
        if version > self._version:
            raise StateDecodeError(
                f"was saved by version {version} of the class, which is at {self._version} here"
            )
        if version < self._version and self._migrate is not None:
            if form == TYPED:
                fields = self._converter.guide(untagged.load_untyped(payload), self._cls)
            else:
                fields = untagged.load(payload, self.registry, plain=True)
            return self._converter.fit(self._migrated(fields, version), self._cls)
        if form == TYPED:
            if self._typed is not None:
                return self._typed(payload)
            return self._converter.fit(untagged.load_untyped(payload), self._cls)
        state = untagged.load(payload, self.registry)
        if type(state) is not self._kind:
            raise StateDecodeError(
                f"holds a {type(state).__name__} where a {self._kind.__name__} is asked for"
            )
        if form == TAGGED and not self._fits(state):
            return self._converter.fit(state, self._cls)
        return state

    def _migrated(self, fields: Any, version: int) -> dict[str, Any]:
        if type(fields) is not dict or self._migrate is None:
            raise StateDecodeError("holds no fields that could be migrated")
        try:
            result = self._migrate(fields, version)
        except Exception as cause:
            if is_shortage(cause):
                raise
            raise StateDecodeError(f"__migrate__ raised {type(cause).__name__}") from cause
        if type(result) is not dict:
            raise StateDecodeError(f"__migrate__ returned a {type(result).__name__}, not a dict")
        return result


def _version_of(cls: type) -> int:
    version = getattr(cls, "__state_version__", 0)
    if type(version) is not int or not 0 <= version <= _MAX_VERSION:
        raise SettingsError(
            f"{cls.__qualname__}.__state_version__ cannot be used",
            variable="__state_version__",
            allowed="an int from 0 to 2**64 - 1",
        )
    return version


def _head(data: bytes) -> tuple[int, int, bytes]:
    """Return form, version and payload."""
    form, first = data[0], data[1]
    if form not in (TYPED, TAGGED, LOOSE):
        raise StateDecodeError("was not written by MsgpackSerializer")
    end = 2 if first < 0x80 else 2 + _UINT_WIDTH[first]
    return form, msgspec.msgpack.decode(data[1:end], type=int), data[end:]


def _without_values(message: str) -> str:
    """Return msgspec's message if it speaks of types and names only, else where it points to."""
    _, at, where = message.rpartition(" - at ")
    if message.startswith(("Expected `", "Object missing required field")):
        return message
    return f"a value does not fit the class{at}{where}" if at else "a value does not fit the class"
