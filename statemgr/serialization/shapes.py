"""The kinds of classes whose instances can be saved: how to read one, and how to rebuild it.

Rebuilding runs no code of the class except a field's own default: no `__init__`, no
`__post_init__`, no converter, no validator.
"""

import dataclasses
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MemberDescriptorType
from typing import Any, NamedTuple

from .hints import hints_of
from .refusal import Refusal

Default = Callable[[Any], object]
"""Makes a field's default; is given the instance so far, which attrs factories may ask for."""


class Field(NamedTuple):
    """A declared field.

    Attributes:
        hint: Its resolved annotation; `Any` where there is none.
        default: None where a value is required.
    """

    hint: Any
    default: Default | None


class Shape(ABC):
    """What is known of one class.

    Attributes:
        cls: The class.
        fields: Its declared fields, in order.
    """

    def __init__(self, cls: type, fields: dict[str, Field]) -> None:
        self.cls = cls
        self.fields = fields

    @abstractmethod
    def read(self, instance: Any) -> Mapping[str, object]:
        """Return what `make` needs to rebuild an equal instance.

        Raises:
            Refusal: It has an attribute that is not declared, or lacks one that is.
        """

    @abstractmethod
    def make(self, values: Mapping[str, object]) -> object:
        """Build an instance; take defaults for what is missing, ignore what is not declared.

        Raises:
            Refusal: A field is missing and has no default.
        """

    def knows(self, name: str) -> bool:
        """Tell whether an instance can have been saved with a value called `name`."""
        return name in self.fields

    @abstractmethod
    def access(self, name: str) -> str:
        """Return the source that reads the field `name` when put behind an instance's name."""

    def default(self, name: str, instance: object) -> object:
        """Return the default of the field `name`.

        Raises:
            Refusal: It has none.
        """
        make = self.fields[name].default
        if make is None:
            raise Refusal("is missing and has no default", f".{name}")
        return make(instance)


class AttributeShape(Shape):
    """A class whose instances keep their attributes in `__dict__`, in slots, or both.

    Attributes:
        slots: The descriptor of each slot. They bypass `__setattr__`, frozen or not.
        has_dict: Whether instances have a `__dict__`.
    """

    def __init__(self, cls: type, fields: dict[str, Field]) -> None:
        super().__init__(cls, fields)
        self.has_dict = cls.__dictoffset__ != 0
        self.slots = {
            name: member
            for base in reversed(cls.__mro__)
            for name, member in vars(base).items()
            if isinstance(member, MemberDescriptorType)
        }

    def access(self, name: str) -> str:
        return f".{name}" if name in self.slots else f".__dict__[{name!r}]"

    def hides_state(self) -> bool:
        """Tell whether instances hold more than attributes.

        What a base written in C keeps to itself (the items of a list, the state of a lock) shows
        in the size of an instance; `pickle` goes by the same sign.
        """
        places = len(self.slots) + (self.cls.__dictoffset__ > 0) + (self.cls.__weakrefoffset__ > 0)
        room = object.__basicsize__ + places * struct.calcsize("P")
        return self.cls.__itemsize__ != 0 or self.cls.__basicsize__ > room

    def attributes(self, instance: Any) -> dict[str, object]:
        """Return all attributes that `instance` has."""
        values: dict[str, object] = instance.__dict__ if self.has_dict else {}
        if self.slots:
            values = dict(values)
            for name, member in self.slots.items():
                try:
                    values[name] = member.__get__(instance)
                except AttributeError:  # an empty slot
                    continue
        return values

    def fill(self, instance: Any, name: str, value: object) -> None:
        """Set one attribute, unless the class no longer has a place for it."""
        if name in self.slots:
            self.slots[name].__set__(instance, value)
        elif self.has_dict:
            instance.__dict__[name] = value


class PlainShape(AttributeShape):
    """A class without a list of fields: its instances are what their attributes are."""

    def read(self, instance: Any) -> Mapping[str, object]:
        values = self.attributes(instance)
        if not all(type(name) is str for name in values):
            raise Refusal("has an attribute whose name is not a str")
        return values

    def make(self, values: Mapping[str, object]) -> object:
        instance: object = object.__new__(self.cls)
        for name, value in values.items():
            self.fill(instance, name, value)
        return instance

    def knows(self, name: str) -> bool:
        return self.has_dict or name in self.slots


class DeclaredShape(AttributeShape):
    """A dataclass or an attrs class."""

    def read(self, instance: Any) -> Mapping[str, object]:
        values = self.attributes(instance)
        if values.keys() == self.fields.keys():
            return values
        for name in values.keys() - self.fields.keys():
            # Box[int]() leaves its alias on the instance; it belongs to typing, not to the state.
            if name != "__orig_class__":
                raise Refusal("is not a declared field", f".{name}")
        return {
            name: values[name] if name in values else self._class_attribute(name)
            for name in self.fields
        }

    def _class_attribute(self, name: str) -> object:
        # A field with init=False and a default is read from the class until it is assigned.
        for base in self.cls.__mro__:
            if name in vars(base) and name not in self.slots:
                value = vars(base)[name]
                if not hasattr(type(value), "__get__"):
                    return value
        raise Refusal("has no value", f".{name}")

    def make(self, values: Mapping[str, object]) -> object:
        instance: object = object.__new__(self.cls)
        missing = []
        for name in self.fields:
            if name in values:
                self.fill(instance, name, values[name])
            else:
                missing.append(name)
        for name in missing:
            self.fill(instance, name, self.default(name, instance))
        return instance


def constant(value: object) -> Default:
    """Return a default that is always `value`."""
    return lambda _: value


def factory(make: Callable[[], object]) -> Default:
    """Return a default that `make` makes anew each time."""
    return lambda _: make()


def dataclass_shape(cls: type) -> Shape:
    """Describe a dataclass."""
    hints = hints_of(cls)
    fields = {}
    for field in dataclasses.fields(cls):
        default: Default | None = None
        if field.default_factory is not dataclasses.MISSING:
            default = factory(field.default_factory)
        elif field.default is not dataclasses.MISSING:
            default = constant(field.default)
        fields[field.name] = Field(hints.get(field.name, Any), default)
    return DeclaredShape(cls, fields)


def attrs_shape(cls: type) -> Shape:
    """Describe an attrs class."""
    import attr

    hints = hints_of(cls)
    fields = {}
    for attribute in attr.fields(cls):
        default: Default | None = None
        if isinstance(attribute.default, attr.Factory):  # type: ignore[arg-type]
            make = attribute.default.factory
            default = make if attribute.default.takes_self else factory(make)
        elif attribute.default is not attr.NOTHING:
            default = constant(attribute.default)
        fields[attribute.name] = Field(hints.get(attribute.name, Any), default)
    return DeclaredShape(cls, fields)


def plain_shape(cls: type) -> Shape:
    """Describe a class of the ordinary kind, whose fields are what it annotates."""
    return PlainShape(cls, {name: Field(hint, None) for name, hint in hints_of(cls).items()})
