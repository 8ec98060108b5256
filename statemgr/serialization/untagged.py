"""Values from the tagged form; `tagged` describes it.

Everything here may be given bytes that no writer wrote. A reader may fail with any exception,
which its caller turns into a `StateDecodeError`; it never runs for longer, or takes more memory,
than a small multiple of what the bytes' length allows.
"""

from enum import Enum, Flag
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack  # type: ignore[import-untyped]
import msgspec

from .refusal import MAX_DEPTH, TOO_DEEP, Refusal
from .registry import Registry
from .scalars import EXTENSIONS, LEAVES
from .tagged import MAX_ALIKE, Mark, flag_member, too_many_alike

if TYPE_CHECKING:
    from collections.abc import Callable

    from .shapes import Shape

_MARKS = {int(mark): mark for mark in Mark}
_walk = msgspec.msgpack.Decoder(msgspec.Raw).decode


def load(data: bytes, registry: Registry, *, plain: bool = False) -> Any:
    """Return the value that `data` stands for.

    Args:
        data: What `tagged.dump` returned.
        registry: The classes that it may name.
        plain: Give instances as dicts of their fields, looking up no class for them. Those in
            sets and among dict keys stay instances, because dicts are not hashable.

    Raises:
        Exception: `data` is damaged, or names what is not in `registry`.
    """
    # msgpack makes room for as many items as a header claims, once per level. A walk first, which
    # makes nothing, shows that all that is claimed is there.
    _walk(data)
    classes, root = msgpack.unpackb(
        data, ext_hook=_extension, object_pairs_hook=_no_map, unicode_errors="strict"
    )
    if not all(type(name) is str for entry in classes for name in entry):
        raise Refusal("names a class or a field by something that is not a str")
    return _Reader(classes, registry).value(root, 0, plain)


def load_untyped(data: bytes) -> Any:
    """Return what `data`, written by msgspec's encoder, holds in MessagePack's own types.

    Raises:
        Exception: `data` is damaged.
    """
    value = msgspec.msgpack.decode(data, ext_hook=_no_extension)
    _check_depth(value, 0)
    return value


def _check_depth(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Refusal(TOO_DEEP)
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return
    for item in value:
        _check_depth(item, depth + 1)


def _no_extension(code: int, data: memoryview) -> NoReturn:
    raise Refusal("holds an extension, which the typed form does not use")


def _extension(code: int, data: bytes) -> object:
    if code in _MARKS and not data:
        return _MARKS[code]
    _, _, read = EXTENSIONS[code]
    return read(data)


def _no_map(pairs: object) -> NoReturn:
    raise Refusal("holds a map, which the tagged form does not use")


class _Reader:
    """Turn nodes into values."""

    def __init__(self, classes: list[list[str]], registry: Registry) -> None:
        self._classes = classes
        self._registry = registry
        self._shapes: dict[int, Shape] = {}
        self._containers: dict[Mark, Callable[[list[Any], int, bool], object]] = {
            Mark.TUPLE: self._tuple,
            Mark.SET: self._set,
            Mark.FROZENSET: self._frozenset,
            Mark.DICT: self._dict,
            Mark.INSTANCE: self._instance,
            Mark.ENUM: self._enum,
            Mark.FLAG: self._flag,
        }

    def value(self, node: Any, depth: int, plain: bool) -> Any:
        """Return the value of `node`, which stands inside `depth` containers."""
        kind = type(node)
        if kind in LEAVES:
            return node
        if kind is not list:
            raise Refusal("holds something that is not a value")
        mark = node[0] if node and type(node[0]) is Mark else None
        if depth >= MAX_DEPTH and mark not in (Mark.ENUM, Mark.FLAG):
            raise Refusal(TOO_DEEP)
        if mark is not None:
            return self._containers[mark](node, depth + 1, plain)
        return [self.value(item, depth + 1, plain) for item in node]

    def _tuple(self, node: list[Any], depth: int, plain: bool) -> tuple[Any, ...]:
        return tuple([self.value(item, depth, plain) for item in node[1:]])

    def _set(self, node: list[Any], depth: int, plain: bool) -> set[Any]:
        return set(self._distinct(node[1:], depth))

    def _frozenset(self, node: list[Any], depth: int, plain: bool) -> frozenset[Any]:
        return frozenset(self._distinct(node[1:], depth))

    def _distinct(self, nodes: list[Any], depth: int) -> list[Any]:
        """Return hashable values that differ from each other."""
        values = [self.value(node, depth, plain=False) for node in nodes]
        if too_many_alike(values):
            raise Refusal(f"holds more than {MAX_ALIKE} keys with the same hash")
        if len(set(values)) != len(values):
            raise Refusal("holds the same key twice")
        return values

    def _dict(self, node: list[Any], depth: int, plain: bool) -> dict[Any, Any]:
        keys = self._distinct(node[1::2], depth)
        values = [self.value(item, depth, plain) for item in node[2::2]]
        return dict(zip(keys, values, strict=True))

    def _instance(self, node: list[Any], depth: int, plain: bool) -> object:
        _, index, *parts = node
        name, *names = self._classes[index]
        values = [self.value(part, depth, plain) for part in parts]
        fields = dict(zip(names, values, strict=True))
        if len(fields) != len(names):
            raise Refusal("names a field twice")
        if plain:
            return fields
        if index not in self._shapes:
            cls = self._registry.find(name)
            shape = None if cls is None else self._registry.shape(cls)
            if shape is None:
                raise Refusal(self._unknown(index))
            self._shapes[index] = shape
        return self._shapes[index].make(fields)

    def _enum(self, node: list[Any], depth: int, plain: bool) -> object:
        _, index, name = node
        cls = self._enum_class(index)
        member = None if cls is None else cls.__members__.get(name)
        if member is not None:
            return member
        if plain:  # what was removed has only its name left
            return str(name)
        raise Refusal(self._unknown(index))

    def _flag(self, node: list[Any], depth: int, plain: bool) -> object:
        _, index, *names, rest = node
        cls = self._enum_class(index)
        if cls is None or not issubclass(cls, Flag):
            raise Refusal(self._unknown(index))
        return flag_member(cls, names, rest)

    def _enum_class(self, index: Any) -> type[Enum] | None:
        (name,) = self._classes[index]
        return self._registry.find_enum(name)

    def _unknown(self, index: int) -> str:
        return f"holds a {self._classes[index][0][:200]!r} that the program does not declare"
