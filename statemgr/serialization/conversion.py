"""Fit plain values into annotated classes, one field at a time.

Used where stored values do not have the types that a class asks for now: bytes that were written
when the class still took the typed path (where a set is an array, a date a string), states whose
fields were retyped since, and what `__migrate__` returns.

What is accepted is what msgspec's typed decoder accepts: an int for a float, any array for a
list, tuple, set or frozenset, an ISO string for a date, the value of an enum's member, a dict of
its fields for an instance. Nothing is parsed that was not written by a typed encoder.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import msgspec

from .eligible import LEAVES
from .hints import UNION_ORIGINS, hints_of, is_typed_dict, required_keys, strip
from .refusal import MAX_DEPTH, TOO_DEEP, Refusal
from .registry import Registry
from .shapes import Shape
from .tagged import MAX_ALIKE, too_many_alike

_ARRAYS = (list, tuple, set, frozenset)


class Converter:
    """Fit values into the classes of one registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def fit(self, value: Any, hint: Any, depth: int = 0) -> Any:
        """Return `value` as `hint` asks for.

        Where `hint` allows anything, or is of a kind that is not understood, it is `value` itself.

        Raises:
            Refusal: It does not fit.
        """
        if depth > MAX_DEPTH:
            raise Refusal(TOO_DEEP)
        hint, _ = strip(hint)
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in UNION_ORIGINS:
            return self._union(value, arguments, depth)
        if origin is Literal:
            if any(type(value) is type(one) and value == one for one in arguments):
                return value
            raise Refusal("is none of the values declared")
        if (origin or hint) in (list, tuple, set, frozenset, dict):
            return self._container(value, origin or hint, arguments, depth + 1)
        if origin is not None or not isinstance(hint, type):
            return value
        if hint in LEAVES:
            return _leaf(value, hint)
        if issubclass(hint, Enum):
            return _member(value, hint)
        if is_typed_dict(hint):
            return self._typed_dict(value, hint, depth + 1)
        shape = self._registry.shape(hint)
        return value if shape is None else self._instance(value, shape, depth + 1)

    def plain(self, value: Any) -> Any:
        """Return `value` with instances as dicts of their fields, except hashed ones."""
        kind = type(value)
        if kind in (list, tuple):
            return kind([self.plain(item) for item in value])
        if kind is dict:
            return {key: self.plain(item) for key, item in value.items()}
        shape = self._registry.shape(kind)
        if shape is None:
            return value
        return {name: self.plain(item) for name, item in shape.read(value).items()}

    def _union(self, value: Any, hints: tuple[Any, ...], depth: int) -> Any:
        # An alternative of the value's own type comes first: 1 is an int to `float | int`.
        for hint in sorted(hints, key=lambda hint: _runtime_type(hint) is not type(value)):
            try:
                return self.fit(value, hint, depth)
            except Refusal:
                continue
        raise Refusal("fits none of the types declared")

    def _container(self, value: Any, kind: type, hints: tuple[Any, ...], depth: int) -> Any:
        if kind is dict:
            if type(value) is not dict:
                raise _misfit(value, dict)
            key_hint, item_hint = hints or (Any, Any)
            keys = [_at(f"[key #{i}]", self.fit, k, key_hint, depth) for i, k in enumerate(value)]
            items = [
                _at(f"[#{i}]", self.fit, item, item_hint, depth)
                for i, item in enumerate(value.values())
            ]
            return dict(zip(_distinct(keys), items, strict=True))
        if type(value) not in _ARRAYS:
            raise _misfit(value, kind)
        if kind is tuple and hints and hints[-1] is not Ellipsis:
            if len(hints) != len(value):
                raise Refusal(f"has {len(value)} items where {len(hints)} are declared")
        else:
            hints = (hints[0] if hints else Any,) * len(value)
        items = [
            _at(f"[{i}]", self.fit, item, hint, depth)
            for i, (item, hint) in enumerate(zip(value, hints, strict=True))
        ]
        return kind(_distinct(items) if kind in (set, frozenset) else items)

    def _typed_dict(self, value: Any, cls: type, depth: int) -> dict[str, Any]:
        if type(value) is not dict:
            raise _misfit(value, dict)
        for name in required_keys(cls):
            if name not in value:
                raise Refusal("is missing", f"[{name!r}]")
        return {
            name: _at(f"[{name!r}]", self.fit, value[name], hint, depth)
            for name, hint in hints_of(cls).items()
            if name in value
        }

    def _instance(self, value: Any, shape: Shape, depth: int) -> object:
        if type(value) is dict:
            stored: Mapping[str, Any] = value
        elif type(value) is shape.cls:
            stored = shape.read(value)
        elif issubclass(type(value), shape.cls):
            return value
        else:
            raise _misfit(value, shape.cls)
        fitted = dict(stored)
        for name, field in shape.fields.items():
            if name in stored:
                fitted[name] = _at(f".{name}", self.fit, stored[name], field.hint, depth)
        return shape.make(fitted)


def _leaf(value: Any, cls: type) -> Any:
    if type(value) is cls:
        return value
    if type(value) in (str, int) and cls not in (NoneType, bool, int, str, bytes):
        try:
            return msgspec.convert(value, cls)
        except msgspec.ValidationError:  # its text may show the value
            pass
    raise _misfit(value, cls)


def _member(value: Any, cls: type[Enum]) -> Enum:
    if type(value) is cls:
        return value
    for member in cls.__members__.values():
        if type(member.value) is type(value) and member.value == value:
            return member
    raise Refusal(f"is not the value of a member of {cls.__qualname__}")


def _runtime_type(hint: Any) -> Any:
    hint, _ = strip(hint)
    return get_origin(hint) or hint


def _distinct(values: list[Any]) -> list[Any]:
    if too_many_alike(values):
        raise Refusal(f"has more than {MAX_ALIKE} keys with the same hash")
    return values


def _at(step: str, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Refusal as refusal:
        raise refusal.inside(step) from None


def _misfit(value: object, cls: type) -> Refusal:
    return Refusal(f"is a {type(value).__name__} where a {cls.__name__} is declared")
