"""Shapes of named tuples, msgspec structs and pydantic models."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from .hints import hints_of
from .refusal import Refusal
from .shapes import Default, Field, Shape, constant, factory

FIELDS_SET = "__pydantic_fields_set__"


class NamedTupleShape(Shape):
    """A named tuple; saved by name, so that its fields may move."""

    def __init__(self, cls: Any) -> None:
        hints = hints_of(cls)
        defaults = {name: constant(value) for name, value in cls._field_defaults.items()}
        super().__init__(
            cls, {name: Field(hints.get(name, Any), defaults.get(name)) for name in cls._fields}
        )

    def access(self, name: str) -> str:
        return f"[{list(self.fields).index(name)}]"

    def read(self, instance: Any) -> Mapping[str, object]:
        items = list(tuple.__iter__(instance))
        if len(items) != len(self.fields) or getattr(instance, "__dict__", None):
            raise Refusal("holds more or less than its fields")
        return dict(zip(self.fields, items, strict=True))

    def make(self, values: Mapping[str, object]) -> object:
        return tuple.__new__(
            self.cls,
            [values[name] if name in values else self.default(name, None) for name in self.fields],
        )


class StructShape(Shape):
    """A `msgspec.Struct`.

    An instance can only be made by calling the class, which runs `__post_init__`. A class that has
    one is called through a subclass with an empty one, and the instance is then given its class.
    """

    def __init__(self, cls: Any) -> None:
        hints = hints_of(cls)
        names = cls.__struct_fields__
        required = len(names) - len(cls.__struct_defaults__)
        defaults = [None] * required + [_struct_default(d) for d in cls.__struct_defaults__]
        super().__init__(
            cls,
            {
                name: Field(hints.get(name, Any), default)
                for name, default in zip(names, defaults, strict=True)
            },
        )
        self._maker = cls
        if hasattr(cls, "__post_init__"):
            quiet = {"__post_init__": lambda _: None, "__module__": cls.__module__}
            self._maker = type(cls)(cls.__name__, (cls,), quiet)

    def access(self, name: str) -> str:
        return f".{name}"

    def read(self, instance: Any) -> Mapping[str, object]:
        for name in getattr(instance, "__dict__", ()):
            raise Refusal("is not a declared field", f".{name}")
        values = {}
        for name in self.fields:
            try:
                values[name] = getattr(instance, name)
            except AttributeError:
                raise Refusal("has no value", f".{name}") from None
        return values

    def make(self, values: Mapping[str, object]) -> object:
        known = {
            name: values[name] if name in values else self.default(name, None)
            for name in self.fields
        }
        instance = self._maker(**known)
        if self._maker is not self.cls:
            vars(object)["__class__"].__set__(instance, self.cls)
        return instance


def _struct_default(default: Any) -> Default | None:
    if default is msgspec.NODEFAULT:
        return None
    if type(default) is msgspec._core.Factory:
        return factory(default.factory)
    return constant(default)


class PydanticShape(Shape):
    """A pydantic model: its fields, its extra and private values, and which fields were set.

    They are saved under their own names side by side, so that an extra value may become a field.
    """

    def __init__(self, cls: Any) -> None:
        import pydantic_core

        hints = hints_of(cls)
        fields = {}
        for name, info in cls.model_fields.items():
            make = factory(partial(info.get_default, call_default_factory=True))
            fields[name] = Field(hints.get(name, Any), None if info.is_required() else make)
        super().__init__(cls, fields)
        self._private: dict[str, Any] = cls.__private_attributes__
        self._defaults = {
            name: factory(attribute.get_default)
            for name, attribute in self._private.items()
            if attribute.default_factory or attribute.default is not pydantic_core.PydanticUndefined
        }
        self._keeps_extra = cls.model_config.get("extra") == "allow"

    def knows(self, name: str) -> bool:
        own = name in self.fields or name in self._private or name == FIELDS_SET
        return own or self._keeps_extra

    def access(self, name: str) -> str:
        return f".__dict__[{name!r}]"

    def read(self, instance: Any) -> Mapping[str, object]:
        private = instance.__pydantic_private__ or {}
        extra = instance.__pydantic_extra__ or {}
        taken = self.fields.keys() | self._private.keys() | {FIELDS_SET}
        for name in instance.__dict__.keys() - self.fields.keys():
            raise Refusal("is not a declared field", f".{name}")
        for name in extra if not self._keeps_extra else extra.keys() & taken:
            raise Refusal("is an extra value that the class has no place for", f".{name}")
        for name in self.fields.keys() - instance.__dict__.keys():
            raise Refusal("has no value", f".{name}")
        for name in self._defaults.keys() - private.keys():
            raise Refusal("has no value", f".{name}")
        fields_set = instance.__pydantic_fields_set__
        return {**instance.__dict__, **extra, **private, FIELDS_SET: fields_set}

    def make(self, values: Mapping[str, object]) -> object:
        public = {
            name: values[name] if name in values else self.default(name, None)
            for name in self.fields
        }
        private = {name: make(None) for name, make in self._defaults.items() if name not in values}
        private |= {name: values[name] for name in self._private if name in values}
        others = values.keys() - public.keys() - self._private.keys() - {FIELDS_SET}
        extra = {name: values[name] for name in values if name in others}
        fields_set = values.get(FIELDS_SET, public.keys() & values.keys())
        instance: Any = object.__new__(self.cls)
        for name, value in {
            "__dict__": public,
            FIELDS_SET: set(fields_set),  # type: ignore[call-overload]
            "__pydantic_extra__": extra if self._keeps_extra else None,
            "__pydantic_private__": private if self._private else None,
        }.items():
            object.__setattr__(instance, name, value)
        return instance
