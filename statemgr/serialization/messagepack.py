"""The default serializer."""

from typing import TYPE_CHECKING, Any

from .base import Serializer, T

if TYPE_CHECKING:
    from collections.abc import Callable

    from .codec import Codec
    from .fields import Fields


class MsgpackSerializer(Serializer):
    """Save states as MessagePack; loading runs no code that the data names.

    Dataclasses, attrs classes, plain classes, `msgspec.Struct`, `TypedDict`, named tuples and
    pydantic models; and anywhere in them dict, list, tuple, set, frozenset, str, bytes, int,
    float, bool, None, datetime, date, time, timedelta, UUID, Decimal and enums. An instance in a
    field whose annotation does not lead to its class (`Any`, a bare `list`) needs that class in
    the state's `__state_classes__ = (Item, Coupon)`.

    A part that a state refers to twice is loaded as two equal parts. A field that is new in the
    class gets its default, a stored one that is gone is ignored. For more, a class has
    `__state_version__ = 3` and

        @classmethod
        def __migrate__(cls, data: dict, from_version: int) -> dict: ...

    which is called with the fields of an older version, instances as dicts, and returns those of
    today. Where an older version had a type for every field, it was saved in MessagePack's own
    types, a set as a list, a date as an ISO string, an enum member as its value. What fits today's
    annotation then has the type of today; a field that is gone, and what does not fit, comes as it
    was saved. Any other state comes with the types it had.
    """

    def __init__(self) -> None:
        # Tables of functions, so that a call costs one lookup and no attribute more.
        self._encoders: dict[type, Callable[[object], bytes]] = {}
        self._decoders: dict[type, Any] = {}

    def serialize(self, state: object, cls: type[T]) -> bytes:
        try:
            encode = self._encoders[cls]
        except KeyError:
            encode = self._prepare(cls).encode
        return encode(state)

    def encoder(self, cls: type[T]) -> "Callable[[T], bytes]":
        if cls not in self._encoders:
            self._prepare(cls)
        return self._encoders[cls]

    def deserialize(self, data: bytes, cls: type[T]) -> T:
        try:
            decode: Callable[[bytes], T] = self._decoders[cls]
        except KeyError:
            decode = self._prepare(cls).decode
        return decode(data)

    def fields(self, cls: type) -> "Fields":
        from .fields import CodecFields

        return CodecFields(self._prepare(cls))

    def _prepare(self, cls: type) -> "Codec":
        # Imported at the first state: msgspec costs more than the rest of the package together.
        from .codec import Codec

        if not isinstance(cls, type):
            raise TypeError(f"a state's class must be a class, not a {type(cls).__name__}")
        codec = Codec(cls)
        self._encoders[cls] = codec.encode
        self._decoders[cls] = codec.decode
        return codec
