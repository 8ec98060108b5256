"""Fit plain values into annotated classes, one field at a time.

Used where stored values do not have the types that a class asks for now: bytes that were written
when the class still took the typed path (where a set is an array, a date a string), states whose
fields were retyped since, and what `__migrate__` returns.

What is accepted is what msgspec's typed decoder accepts: an int for a float, any array for a
list, tuple, set or frozenset, an ISO string for a date, the value of an enum's member, a dict of
its fields for an instance. Nothing is parsed that was not written by a typed encoder. Only of
several classes in a union must the one be plain: it has all the names, and no other one fits.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import msgspec

from .hints import UNION_ORIGINS, alternatives, hints_of, is_typed_dict, required_keys, strip
from .refusal import MAX_DEPTH, TOO_DEEP, Ambiguity, Refusal
from .registry import Registry
from .scalars import LEAVES
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
            return self._union(value, list(dict.fromkeys(alternatives(hint))), depth)
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

    def guide(self, value: Any, hint: Any) -> Any:
        """Return what an untyped read gave, with the types that `hint` tells.

        Instances stay dicts. Nothing is left out or filled in: a field that `hint` does not have,
        and whatever does not fit it, stays as MessagePack has it.
        """
        if type(value) is list:
            return self._guide_array(value, hint)
        if type(value) is dict:
            return self._guide_dict(value, hint)
        try:
            return self.fit(value, hint)
        except Refusal:
            return value

    def _guide_array(self, values: list[Any], hint: Any) -> Any:
        arrays = [one for one in alternatives(hint) if _runtime_type(one) in _ARRAYS]
        if len(arrays) != 1:
            return values
        kind, hints = _runtime_type(arrays[0]), get_args(arrays[0])
        if kind is not tuple or not hints or hints[-1] is Ellipsis:
            hints = (hints[0] if hints else Any,) * len(values)
        if len(hints) != len(values):
            return values
        items = [self.guide(item, one) for item, one in zip(values, hints, strict=True)]
        return items if kind in (set, frozenset) and not _are_keys(items) else kind(items)

    def _guide_dict(self, values: dict[Any, Any], hint: Any) -> dict[Any, Any]:
        dicts = [
            one
            for one in alternatives(hint)
            if _runtime_type(one) is dict or self._fields(one) is not None
        ]
        if len(dicts) != 1:
            return values
        hints = self._fields(dicts[0])
        if hints is not None:
            return {name: self.guide(item, hints.get(name, Any)) for name, item in values.items()}
        key_hint, item_hint = get_args(dicts[0]) or (Any, Any)
        keys = [self.guide(key, key_hint) for key in values]
        items = [self.guide(item, item_hint) for item in values.values()]
        return dict(zip(keys if _are_keys(keys) else values, items, strict=True))

    def _fields(self, hint: Any) -> dict[str, Any] | None:
        """Return the annotations of a class whose values are stored as a dict by name."""
        if is_typed_dict(hint):
            return hints_of(hint)
        shape = self._registry.shape(hint)
        return None if shape is None else {n: field.hint for n, field in shape.fields.items()}

    def _union(self, value: Any, hints: list[Any], depth: int) -> Any:
        # An alternative of the value's own type comes first: 1 is an int to `float | int`.
        hints.sort(key=lambda hint: _runtime_type(hint) is not type(value))
        if type(value) is dict:
            hints = self._with_all(value, hints)
        fitting = self._fitting(value, hints, depth)
        for hint, fitted in fitting:
            if (
                type(value) is dict
                and self._registry.shape(hint) is not None
                and any(self._registry.shape(other) is not None for other, _ in fitting)
            ):
                raise Ambiguity("fits several of the classes declared")
            return fitted
        raise Refusal("fits none of the types declared")

    def _fitting(self, value: Any, hints: list[Any], depth: int) -> Iterator[tuple[Any, Any]]:
        for hint in hints:
            try:
                fitted = self.fit(value, hint, depth)
            except Ambiguity:
                raise
            except Refusal:
                continue
            yield hint, fitted

    def _with_all(self, names: Iterable[str], hints: list[Any]) -> list[Any]:
        """Leave out of several classes those that do not have all `names`.

        A class with a default for every field would take any dict for its own.
        """
        knows: dict[Any, Callable[[str], bool]] = {}
        for hint in hints:
            shape = self._registry.shape(hint)
            if shape is not None:
                knows[hint] = shape.knows
            elif is_typed_dict(hint):
                knows[hint] = hints_of(hint).__contains__
        if len(knows) < 2:
            return hints
        return [hint for hint in hints if hint not in knows or all(map(knows[hint], names))]

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
    return dict if is_typed_dict(hint) else get_origin(hint) or hint


def _are_keys(values: list[Any]) -> bool:
    """Tell whether a set of `values` can be had, and has them all."""
    try:
        return not too_many_alike(values) and len(set(values)) == len(values)
    except TypeError:  # not hashable
        return False


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
