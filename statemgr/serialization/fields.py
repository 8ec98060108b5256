"""The fields of a state, each by itself: what changed between two moments, and to what.

An image is taken of a state at one moment and stays what it is when the state changes. What
comes out of two of them shares nothing with either: it can be sent while the state goes on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..errors import StateEncodeError
from . import tagged, untagged
from .hints import classes_in, is_typed_dict
from .refusal import Refusal
from .registry import Registry, shape_of
from .shapes import AttributeShape, Shape

if TYPE_CHECKING:
    from .codec import Codec

WHOLE: Final = ""
"""The one field of a state that has no fields by name, such as a list."""


class Removed:
    """What stands in place of a value where a field is gone; REMOVED is the only one.

    No encoder takes it for a value: an application says how its clients are told.
    """

    def __repr__(self) -> str:
        return "REMOVED"

    def __reduce__(self) -> str:
        return "REMOVED"


REMOVED: Final = Removed()
"""The value of a field that is there no more: of a key of a dict, say."""

# Of classes that no registry has.
_shape_of: Callable[[type], Shape | None] = lru_cache(256)(shape_of)
_pack = msgspec.msgpack.Encoder().encode
_split = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


class Fields(ABC):
    """Tell which fields of one class's states have changed.

    Values are the same if they are equal in every part, types and the order in dicts included;
    instances are if their attributes are. Names that begin with an underscore are left out: they
    are the program's own.
    """

    @abstractmethod
    def image(self, state: Any) -> Any:
        """Return what `changes` and `values` need to know of a state as it is now.

        Raises:
            StateEncodeError: If the state could not be saved either.
        """

    def image_of(self, payload: bytes | None) -> Any:
        """Return the image of a state that was serialized so; None if that takes the state."""
        return None

    @abstractmethod
    def changes(self, before: Any, after: Any) -> dict[str, Any]:
        """Return a copy of each field's value that is another one now; REMOVED if it is gone."""

    @abstractmethod
    def values(self, image: Any) -> dict[str, Any]:
        """Return a copy of every field's value."""


class CopiedFields(Fields):
    """Go by copies of the whole state: for any serialization."""

    def __init__(
        self, serialize: Callable[[Any], bytes], deserialize: Callable[[bytes], Any]
    ) -> None:
        self._serialize = serialize
        self._deserialize = deserialize

    def image(self, state: Any) -> Any:
        return self._serialize(state)

    def changes(self, before: Any, after: Any) -> dict[str, Any]:
        if before == after:
            return {}
        return _differences(self.values(before), self.values(after), _itself)

    def values(self, image: Any) -> dict[str, Any]:
        return _public(_fields_of(self._deserialize(image)))


class CodecFields(Fields):
    """Go by what the codec makes of each field: equal bytes stand for equal values.

    An image is the whole state as typed MessagePack where the class and the values allow it,
    else the tagged form of each field.
    """

    def __init__(self, codec: "Codec") -> None:
        self._codec = codec
        self._registry = codec.registry
        self._shape = codec.registry.shape(codec.registry.root)
        self._decoders: dict[str, Callable[[Any], Any]] = {}
        self._prefix = codec.typed_prefix
        fields = {} if self._shape is None else self._shape.fields
        self._with_sets = {
            name for name, field in fields.items() if _may_hold_sets(field.hint, self._registry)
        }

    def image_of(self, payload: bytes | None) -> Any:
        if payload is None or not payload.startswith(self._prefix):
            return None
        return payload[len(self._prefix) :]

    def image(self, state: Any) -> Any:
        matches = self._codec.matches
        if matches is not None and self._shape is not None and matches(state):
            try:
                return _pack(state)
            except Exception:  # noqa: S110  # as in Codec: an int over 64 bits, a lone surrogate
                pass
        try:
            fields = self._shape.read(state) if self._shape is not None else _fields_of(state)
            return {name: tagged.dump(v, self._registry) for name, v in _public(fields).items()}
        except Exception as error:
            self._codec.encode(state)  # raises what saving it would, with the path
            raise StateEncodeError(type(state).__name__, "cannot be told by its fields") from error

    def changes(self, before: Any, after: Any) -> dict[str, Any]:
        if before == after:
            return {}
        if type(before) is bytes and type(after) is bytes:
            # Typed states have all their fields, and none that begins with an underscore.
            old = _split(before)
            changed = {
                name: self._typed(name, raw)
                for name, raw in _split(after).items()
                if raw != old[name]
            }
            for name in self._with_sets & changed.keys():
                if _same(self._typed(name, old[name]), changed[name]):  # only in another order
                    del changed[name]
            return changed
        return _differences(self._tagged(before), self._tagged(after), self._untagged)

    def values(self, image: Any) -> dict[str, Any]:
        if type(image) is bytes:
            return {name: self._typed(name, raw) for name, raw in _split(image).items()}
        return {name: self._untagged(name, data) for name, data in image.items()}

    def _tagged(self, image: Any) -> Mapping[str, bytes]:
        if type(image) is not bytes:
            fields: Mapping[str, bytes] = image
            return fields
        return {name: tagged.dump(v, self._registry) for name, v in self.values(image).items()}

    def _typed(self, name: str, raw: Any) -> Any:
        decode = self._decoders.get(name)
        if decode is None:
            assert self._shape is not None  # noqa: S101  # only states with a shape are typed
            hint = self._shape.fields[name].hint
            decode = self._decoders[name] = msgspec.msgpack.Decoder(hint).decode
        return decode(raw)

    def _untagged(self, name: str, data: bytes) -> Any:
        try:
            return untagged.load(data, self._registry)
        except Refusal as refusal:  # what was just dumped
            raise StateEncodeError(name + refusal.path, refusal.reason) from None


def _fields_of(state: Any) -> Mapping[str, Any]:
    if isinstance(state, dict) and all(type(key) is str for key in state):
        return state
    kind = type(state)
    shape = None if is_typed_dict(kind) else _shape_of(kind)
    return {WHOLE: state} if shape is None else _read(shape, state)


def _read(shape: Shape, instance: Any) -> Mapping[str, Any]:
    try:
        return shape.read(instance)
    except Refusal:  # it has other attributes than are declared, and another serialization
        if not isinstance(shape, AttributeShape):
            raise
        return shape.attributes(instance)


def _public(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], value: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """Return what changed of fields that `value` makes the values of."""
    changed = {}
    for name, part in after.items():
        if name not in before:
            changed[name] = value(name, part)
        elif part is not before[name] and not (type(part) is bytes and part == before[name]):
            new = value(name, part)
            if not _same(value(name, before[name]), new):
                changed[name] = new
    return changed | dict.fromkeys(before.keys() - after.keys(), REMOVED)


def _same(one: object, other: object) -> bool:
    try:
        return _alike(one, other)
    except RecursionError:  # it refers to itself
        return False


def _alike(one: Any, other: Any) -> bool:
    kind = type(one)
    if kind is not type(other):
        return False
    if kind in (list, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if kind is dict:
        return _alike(list(one.items()), list(other.items()))
    if kind in (set, frozenset):
        return {(type(part), part) for part in one} == {(type(part), part) for part in other}
    if kind is float:
        return repr(one) == repr(other)  # which tells -0.0 from 0.0, and takes nan for nan
    shape = _shape_of(kind)
    if shape is None:
        return bool(one == other)
    return _alike(dict(_read(shape, one)), dict(_read(shape, other)))


def _may_hold_sets(hint: Any, registry: Registry) -> bool:
    """Tell whether a typed field may have a set somewhere: its order says nothing."""
    waiting, seen = list(classes_in(hint)), set()
    for cls in waiting:  # which grows
        if issubclass(cls, (set, frozenset)):
            return True
        if cls not in seen and (shape := registry.shape(cls)) is not None:
            for field in shape.fields.values():
                waiting.extend(classes_in(field.hint))
        seen.add(cls)
    return False


def _itself(name: str, value: object) -> object:
    return value
