"""The tagged form: MessagePack that says the type of everything in it.

    tagged    = [classes, root]
    classes   = [[class name, field name, ...], ...]
    root      = value
    value     = nil | bool | float | bin | int of 64 bits | str of valid UTF-8
              | [value, ...]                     a list; its first item is never a mark
              | [mark, part, ...]                any other container, an instance, an enum member
              | ext(16 and above)                a scalar, see `scalars`

A mark is an extension without payload, which no value is. Containers are tagged in line and not
put inside an extension, because that would copy what is inside once per level.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import Enum, Flag, IntEnum
from types import NoneType
from typing import Any

import msgpack  # type: ignore[import-untyped]

from .refusal import MAX_DEPTH, TOO_DEEP, Refusal
from .registry import Registry
from .scalars import EXTENSIONS

MAX_VALUES = 2**22
"""How many values one state may hold. Shared parts count each time: they are saved each time."""

MAX_ALIKE = 1000
"""How many keys of one dict or set may have a hash that another one has.

Loading takes time in the square of it. Hashes of numbers are not salted, so without a bound a few
megabytes of chosen keys would keep a worker busy for hours.
"""


class Mark(IntEnum):
    """What a list that starts with this extension stands for. Stored: never renumbered."""

    TUPLE = 1  # item, ...
    SET = 2  # item, ...
    FROZENSET = 3  # item, ...
    DICT = 4  # key, value, key, value, ...
    INSTANCE = 5  # index in classes, value, ...
    ENUM = 6  # index in classes, name
    FLAG = 7  # index in classes, name, ..., bits without a name


EXT = {mark: msgpack.ExtType(mark, b"") for mark in Mark}
AS_IS = frozenset({NoneType, bool, float, bytes})
_WRITERS = {cls: (code, write) for code, (cls, write, _) in EXTENSIONS.items()}
_SEQUENCES: dict[type, Mark] = {tuple: Mark.TUPLE, set: Mark.SET, frozenset: Mark.FROZENSET}
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1


def too_many_alike(keys: Collection[Any]) -> bool:
    """Tell whether more than `MAX_ALIKE` of `keys` share a hash with another one."""
    return len(keys) > MAX_ALIKE and len(keys) - len(set(map(hash, keys))) > MAX_ALIKE


def dump(value: object, registry: Registry) -> bytes:
    """Return the tagged form of `value`.

    Raises:
        Refusal: Something in it would not come back as it is.
    """
    writer = _Writer(registry)
    root = writer.node(value, 0)
    data: bytes = msgpack.packb([writer.classes, root])
    return data


class _Writer:
    """Turn values into what `msgpack` packs, with one table of classes for all of them."""

    def __init__(self, registry: Registry) -> None:
        self.classes: list[list[str]] = []
        self._registry = registry
        self._index: dict[tuple[object, ...], int] = {}
        self._left = MAX_VALUES

    def node(self, value: Any, depth: int) -> object:
        """Return the node for `value`, which stands inside `depth` containers."""
        kind = type(value)
        if kind in AS_IS:
            return value
        if kind in _WRITERS:
            if kind is int and _MIN_INT <= value <= _MAX_INT:
                return value
            if kind is str and (value.isascii() or _is_utf8(value)):
                return value
            code, write = _WRITERS[kind]
            return msgpack.ExtType(code, write(value))
        if issubclass(kind, Enum):
            return self._member(value)
        if depth >= MAX_DEPTH:
            raise Refusal(TOO_DEEP)
        if kind is list:
            return self._items([], value, depth, 0)
        if kind is dict:
            return self._dict(value, depth)
        if kind in _SEQUENCES:
            if kind is not tuple and too_many_alike(value):
                raise Refusal(f"has more than {MAX_ALIKE} members with the same hash")
            return self._items([EXT[_SEQUENCES[kind]]], value, depth, 1)
        return self._instance(value, depth)

    def _items(
        self, out: list[object], values: Iterable[Any], depth: int, first: int
    ) -> list[object]:
        try:
            for value in values:
                out.append(self.node(value, depth + 1))  # noqa: PERF401 - its length is the path
        except Refusal as refusal:
            mark = "#" if first and out[0] is not EXT[Mark.TUPLE] else ""
            raise refusal.inside(f"[{mark}{len(out) - first}]") from None
        self._count(len(out))
        return out

    def _dict(self, values: dict[Any, Any], depth: int) -> list[object]:
        if too_many_alike(values):
            raise Refusal(f"has more than {MAX_ALIKE} keys with the same hash")
        out: list[object] = [EXT[Mark.DICT]]
        try:
            for key, value in values.items():
                out.append(self.node(key, depth + 1))
                out.append(self.node(value, depth + 1))
        except Refusal as refusal:
            entry, at_value = divmod(len(out) - 1, 2)
            raise refusal.inside(f"[#{entry}]" if at_value else f"[key #{entry}]") from None
        self._count(len(out))
        return out

    def _instance(self, instance: object, depth: int) -> list[object]:
        cls = type(instance)
        shape = self._registry.shape(cls)
        if shape is None:
            raise Refusal(self._registry.why_not(cls))
        values: Mapping[str, object] = shape.read(instance)
        out: list[object] = [EXT[Mark.INSTANCE], self._class(cls, *values)]
        try:
            for value in values.values():
                out.append(self.node(value, depth + 1))  # noqa: PERF401 - its length is the path
        except Refusal as refusal:
            raise refusal.inside(f".{list(values)[len(out) - 2]}") from None
        self._count(len(out))
        return out

    def _member(self, member: Enum) -> list[object]:
        cls = type(member)
        index = self._class(cls)
        name = member.name
        if name is not None and cls.__members__.get(name) is member:
            return [EXT[Mark.ENUM], index, name]
        if isinstance(member, Flag):
            names = [part.name for part in cls if part.value & member.value == part.value]
            rest = member.value
            for name in names:
                rest &= ~cls[str(name)].value
            if flag_member(cls, [str(name) for name in names], rest) is member:
                return [EXT[Mark.FLAG], index, *names, self.node(rest, 0)]
        raise Refusal(f"is a member of {cls.__qualname__} that cannot be found by its name")

    def _class(self, cls: type, *names: str) -> int:
        key = (cls, *names)
        if key not in self._index:
            self._index[key] = len(self.classes)
            self.classes.append([self._registry.name(cls), *names])
        return self._index[key]

    def _count(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise Refusal(f"holds more than {MAX_VALUES} values; shared parts count each time")


def flag_member(cls: Any, names: Iterable[str], rest: int) -> Enum:
    """Return the member of a `Flag` that has the bits of the named members and of `rest`.

    No method of the class runs, except those of the standard library.
    """
    bits = rest
    for name in names:
        bits |= cls.__members__[name].value
    known: Enum | None = cls._value2member_map_.get(bits)
    return Flag.__dict__["_missing_"].__func__(cls, bits) if known is None else known


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True
