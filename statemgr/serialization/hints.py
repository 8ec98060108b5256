"""What the annotations of a class say."""

import contextlib
import inspect
import sys
import types
import typing
from collections.abc import Hashable, Iterator
from enum import Enum
from typing import Annotated, Any, Literal, Union

UNION_ORIGINS = (Union, types.UnionType)
_WRAPPERS = {"Required", "NotRequired", "ReadOnly", "Final"}


def hints_of(cls: type) -> dict[str, Any]:
    """Return the resolved annotations of `cls` and its bases, with their metadata.

    A name that cannot be resolved (a class local to a function, one imported for type checkers
    only) makes its own field `Any` and leaves the others as they are.
    """
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # noqa: S110 - annotations are expressions: they may raise anything
        pass
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        scope = vars(sys.modules.get(base.__module__, types))
        local = {**vars(base), base.__name__: base}
        for name, annotation in inspect.get_annotations(base).items():
            hints[name] = Any
            with contextlib.suppress(Exception):
                holder = types.SimpleNamespace(__annotations__={name: annotation})
                hints |= typing.get_type_hints(holder, scope, local, include_extras=True)
    return hints


def strip(hint: Any) -> tuple[Any, bool]:
    """Return `hint` without what does not change a value's type, and whether it constrains values.

    Taken away are `Annotated`, `NewType`, `Required` and its kin, and aliases made by `type`.
    """
    constrained = False
    while True:
        origin = typing.get_origin(hint)
        if origin is Annotated:
            constrained |= any(type(m).__module__ == "msgspec" for m in hint.__metadata__)
            hint = hint.__origin__
        elif getattr(origin, "_name", None) in _WRAPPERS:
            (hint,) = typing.get_args(hint)
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            if not isinstance(hint, Hashable):  # an annotation that is no type at all
                hint = Any
            return (types.NoneType if hint is None else hint), constrained


def is_typed_dict(hint: Any) -> bool:
    """Tell whether `hint` is a `TypedDict` class, from `typing` or `typing_extensions`."""
    return isinstance(hint, type) and issubclass(hint, dict) and hasattr(hint, "__required_keys__")


def alternatives(hint: Any) -> Iterator[Any]:
    """Yield what `hint` is a union of, stripped; the one it is if it is none."""
    hint, _ = strip(hint)
    if typing.get_origin(hint) not in UNION_ORIGINS:
        yield hint
        return
    for argument in typing.get_args(hint):
        yield from alternatives(argument)


def classes_in(hint: Any) -> Iterator[type]:
    """Yield the classes that `hint` mentions, at any depth."""
    hint, _ = strip(hint)
    origin = typing.get_origin(hint)
    if origin is Literal:
        yield from (type(value) for value in typing.get_args(hint) if isinstance(value, Enum))
        return
    if isinstance(hint, type) and origin is None:
        yield hint
    elif isinstance(origin, type):
        yield origin
    for argument in typing.get_args(hint):
        yield from classes_in(argument)


def required_keys(cls: Any) -> set[str]:
    """Return the keys that a `TypedDict` must have, also where its annotations are strings."""
    required = set(cls.__required_keys__)
    for name, hint in hints_of(cls).items():
        wrapper = getattr(typing.get_origin(hint), "_name", None)
        if wrapper == "NotRequired":
            required.discard(name)
        elif wrapper == "Required":
            required.add(name)
    return required
