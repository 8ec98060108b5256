"""`StateToken`: who and what a state belongs to, and how its class goes to bytes."""

import re
from collections.abc import Callable
from copy import copy
from dataclasses import FrozenInstanceError, dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Generic, Protocol, TypeVar

from statemgr.errors import InvalidTokenError, StateDefaultError
from statemgr.serialization import MsgpackSerializer, Serializer

if TYPE_CHECKING:
    from statemgr.serialization.fields import Fields

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")

_needs_no_quoting = re.compile(r"[A-Za-z0-9._~-]+").fullmatch


def _quote_ident(ident: str) -> str:
    """Percent-encode what RFC 3986 does not call unreserved, as urllib.parse.quote does."""
    if _needs_no_quoting(ident):
        return ident
    # surrogatepass gives every str its own bytes, lone surrogates included.
    encoded = ident.encode("utf-8", "surrogatepass")
    return "".join(_QUOTED[byte] for byte in encoded)


def ident_of(lock_key: str) -> str:
    """Return the ident that a lock key was made from."""
    if "%" not in lock_key:
        return lock_key
    from urllib.parse import unquote_to_bytes  # to list states only, and slow to import

    return unquote_to_bytes(lock_key).decode("utf-8", "surrogatepass")


# Not urllib's own: importing that takes a tenth of the time of importing this package.
_QUOTED = [chr(b) if _needs_no_quoting(chr(b)) else f"%{b:02X}" for b in range(256)]


def _class_key(cls: type) -> str:
    if not isinstance(cls.__module__, str):
        raise InvalidTokenError(f"{cls.__qualname__} has no module to be known by")
    module = cls.__module__.replace("%", "%25").replace(":", "%3A")
    return f"{module}:{cls.__qualname__}"


class ReadableToken(Protocol[T_co]):
    """A token as far as reading goes: what reads a Cart will do where an object is asked for."""

    def create(self) -> T_co:
        """Return a fresh default state."""


@dataclass(frozen=True, slots=True)
class StateToken(Generic[T]):
    """Name one state: the object of class `cls` that belongs to `ident`.

    Subclass it to give a kind of state its own serialization or its own default: set
    `serializer`, or override `create`, `serialize` and `deserialize`. Backends treat every
    token alike.

    Attributes:
        ident: The session, user or room: the unit of locking. Any string but the empty one.
        cls: The class of the state. Classes are told apart by module and qualified name.
        lock_key: The ident, percent-encoded to printable ASCII without a slash.
        cache_key: `lock_key`, a slash, the class's module, a colon, its qualified name. Tokens
            of different idents or classes never share one: the first slash ends the ident, the
            first colon after it the module. Tokens of two kinds do: give a class one kind.
        serializer: How states of this kind go to bytes and back.

    Raises:
        InvalidTokenError: If `ident` is not a string or is empty, or `cls` is not a class. It
            is a `ValueError`.
    """

    ident: str
    cls: type[T]
    lock_key: str = field(init=False, repr=False, compare=False)
    cache_key: str = field(init=False, repr=False, compare=False)
    serializer: ClassVar[Serializer] = MsgpackSerializer()

    def __post_init__(self) -> None:
        if not isinstance(self.ident, str):
            raise InvalidTokenError(f"an ident is a string, not {type(self.ident).__name__}")
        if not self.ident:
            raise InvalidTokenError("an ident cannot be empty")
        if not isinstance(self.cls, type):
            raise InvalidTokenError(f"cls is a class, not {type(self.cls).__name__}")
        ident = str.__str__(self.ident)  # an enum member is a str that prints as another
        lock_key = _quote_ident(ident)
        object.__setattr__(self, "ident", ident)
        object.__setattr__(self, "lock_key", lock_key)
        object.__setattr__(self, "cache_key", f"{lock_key}/{_class_key(self.cls)}")

    def __str__(self) -> str:
        return self.cache_key

    def with_cls(self, cls: type[U]) -> "StateToken[U]":
        """Return a token of the same ident and kind for another class."""
        token: StateToken[Any] = copy(self)  # not made anew: a subclass may take other arguments
        object.__setattr__(token, "cls", cls)
        token.__post_init__()
        return token

    def create(self) -> T:
        """Return a fresh default state: what a token holds that was never written.

        Raises:
            StateDefaultError: If `cls` cannot be called without arguments. Whatever else
                calling it raises is passed on.
        """
        try:
            return self.cls()
        except TypeError as error:
            raise StateDefaultError(
                f"{self.cls.__qualname__}() failed: give every field a default, or override "
                "create() in a subclass of StateToken",
                key=self.cache_key,
            ) from error

    def serialize(self, state: T) -> bytes:
        """Return `state` as bytes.

        Raises:
            StateEncodeError: If something in it would not come back as it is.
        """
        return self.serializer.serialize(state, self.cls)

    def encoder(self) -> Callable[[T], bytes]:
        """Return what `serialize` does, for who calls it again and again."""
        if type(self).serialize is StateToken.serialize:
            return self.serializer.encoder(self.cls)
        return self.serialize

    def fields(self) -> "Fields":
        """Return what tells which fields of a state of this kind have changed."""
        kind = type(self)
        if (kind.serialize, kind.deserialize) == (StateToken.serialize, StateToken.deserialize):
            return self.serializer.fields(self.cls)
        from statemgr.serialization.fields import CopiedFields

        return CopiedFields(self.serialize, self.deserialize)

    def deserialize(self, data: bytes | None = None, fp: BinaryIO | None = None) -> T:
        """Return the state that `serialize` made these bytes from.

        Args:
            data: The bytes, or
            fp: a file to read them from.

        Raises:
            ValueError: If not exactly one of the two is given.
            StateDecodeError: If the bytes are not a state of this class.
        """
        if (data is None) == (fp is None):
            raise ValueError("deserialize() takes exactly one of data and fp")
        if data is None:
            assert fp is not None  # noqa: S101  # said above, in a way mypy cannot follow
            data = fp.read()
        return self.serializer.deserialize(data, self.cls)


def _set_attribute(token: StateToken[Any], name: str, value: object) -> None:
    if type(token) is StateToken or name in StateToken.__slots__:
        raise FrozenInstanceError(f"cannot assign to {name!r}")
    object.__setattr__(token, name, value)


# What dataclass made fails with TypeError on Python 3.11, where slots=True replaces the class it
# refers to; StateToken[Cart]("u", Cart) needs the AttributeError that a frozen class is to raise.
StateToken.__setattr__ = _set_attribute  # type: ignore[method-assign, assignment]

AnyToken = StateToken[Any]
