"""What msgspec's MessagePack encoder and typed decoder are known to bring back unchanged.

Whatever is not listed here takes the tagged path, which is slower and always exact. The list is
held to its word by property tests on the oldest and the newest msgspec.
"""

import dataclasses
from collections.abc import Sequence
from datetime import datetime, time
from enum import Enum
from keyword import iskeyword
from types import MemberDescriptorType, NoneType
from typing import Any
from uuid import UUID

import msgspec

from .registry import Registry
from .shapes import DeclaredShape, Shape

# An aware datetime comes back in UTC, a fold not at all. Given a value and datetime.UTC.
UNEQUAL_WHEN = {
    datetime: "{0}.fold or {0}.tzinfo is not None and {0}.tzinfo is not {1}",
    time: "{0}.fold or {0}.tzinfo is not None",
}

KEYS = frozenset({str, int})
MEMBERS = KEYS | {float, bool, bytes, NoneType}
"""Of sets. Not those types whose hashes can be chosen to be alike, see `tagged.MAX_ALIKE`."""

_MIXABLE = frozenset({bool, int, float, str, bytes, list, dict})


class NotExact(Exception):  # noqa: N818 - no error: it chooses the tagged path
    """msgspec is not known to be exact for an annotation."""


def require(condition: object) -> None:
    """Raise `NotExact` unless `condition` holds."""
    if not condition:
        raise NotExact


def check_union(types: Sequence[type], registry: Registry) -> None:
    """Allow `X | None`, and alternatives that MessagePack itself tells apart.

    Raises:
        NotExact: The union is none of these.
    """
    others = [
        dict if registry.shape(cls) else str if cls is UUID else cls
        for cls in types
        if cls is not NoneType
    ]
    require(len(others) == 1 or (len(set(others)) == len(others) and _MIXABLE.issuperset(others)))


def check_enum(cls: type[Enum]) -> None:
    """Allow enums whose values are all str or all int: msgspec saves them by value.

    Raises:
        NotExact: The enum is a flag, has other values, or its own idea of missing ones.
    """
    kinds = {type(member.value) for member in cls.__members__.values()}
    require(kinds in ({str}, {int}))
    require(cls._missing_.__func__ is Enum._missing_.__func__)  # type: ignore[attr-defined]


def check_class(shape: Shape) -> None:
    """Allow dataclasses, attrs classes and structs without code or names of their own.

    Raises:
        NotExact: Decoding would run code, or encoding would rename or leave out a field.
    """
    cls: Any = shape.cls
    require(not any(hasattr(cls, hook) for hook in ("__post_init__", "__attrs_post_init__")))
    require(not hasattr(cls, "__attrs_pre_init__") and not hasattr(cls, "__pydantic_fields__"))
    require(not any(name.startswith("_") or iskeyword(name) for name in shape.fields))
    if issubclass(cls, msgspec.Struct):
        config = cls.__struct_config__
        require(cls.__struct_encode_fields__ == cls.__struct_fields__ and config.tag is None)
        require(not (config.array_like or config.forbid_unknown_fields or config.omit_defaults))
        require(cls.__dictoffset__ == 0)
        return
    if not isinstance(shape, DeclaredShape):
        raise NotExact
    require(shape.slots.keys() <= shape.fields.keys())
    for name in shape.fields:
        attribute = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
        require(isinstance(attribute, MemberDescriptorType) or not hasattr(attribute, "__set__"))
    if dataclasses.is_dataclass(cls):
        require(all(field.init for field in dataclasses.fields(cls)))
    else:
        for field in cls.__attrs_attrs__:
            require(field.init and field.validator is None and field.converter is None)
