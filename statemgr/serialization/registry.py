"""Which classes the bytes of one state may name.

Nothing here imports a module or reads an attribute of a module or class in the ordinary way: a
name in the data can reach a class only if the program has declared it, and an enum only by
plain lookups in the dicts of modules that are loaded.
"""

import dataclasses
import inspect
import sys
from enum import Enum, EnumType
from types import ModuleType
from typing import Any

import msgspec

from ..errors import SettingsError
from .foreign import NamedTupleShape, PydanticShape, StructShape
from .hints import classes_in, hints_of, is_typed_dict
from .refusal import Refusal
from .scalars import LEAVES
from .shapes import AttributeShape, Shape, attrs_shape, dataclass_shape, plain_shape

ROOT = ""
"""The name of the root class in the data: it may be renamed without losing its states."""

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or by C code like one
_dict_of = type.__dict__["__dict__"].__get__


def shape_of(cls: type) -> Shape | None:
    """Describe `cls`, or return None if its instances cannot be saved as fields by name."""
    if not cls.__flags__ & _HEAP_TYPE or inspect.isabstract(cls) or cls is Any:
        return None
    if cls in LEAVES:  # UUID is written in Python, and has slots
        return None
    if issubclass(cls, Enum) or is_typed_dict(cls) or getattr(cls, "_is_protocol", False):
        return None
    if issubclass(cls, msgspec.Struct):
        return StructShape(cls)
    if issubclass(cls, tuple) and hasattr(cls, "_field_defaults"):
        return NamedTupleShape(cls)
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(cls, pydantic.BaseModel):
        return PydanticShape(cls)
    shape: Shape
    if dataclasses.is_dataclass(cls):
        shape = dataclass_shape(cls)
    elif hasattr(cls, "__attrs_attrs__"):
        shape = attrs_shape(cls)
    else:
        shape = plain_shape(cls)
    hidden = isinstance(shape, AttributeShape) and shape.hides_state()
    return None if hidden else shape


class Registry:
    """The classes reachable from the annotations and the `__state_classes__` of one root class.

    Attributes:
        root: The root class.
    """

    def __init__(self, root: type) -> None:
        """Find the classes.

        Raises:
            SettingsError: `__state_classes__` holds something that is not a class.
        """
        self.root = root
        self._shapes: dict[type, Shape | None] = {}
        self._named: dict[str, type | None] = {ROOT: root}
        waiting = [root]
        while waiting:
            cls = waiting.pop()
            if cls in self._shapes:
                continue
            if not isinstance(cls, type):
                raise SettingsError(
                    f"{root.__qualname__}.__state_classes__ holds something that is not a class",
                    variable="__state_classes__",
                    allowed="classes",
                )
            shape = self._shapes[cls] = shape_of(cls)
            waiting.extend(getattr(cls, "__state_classes__", ()))
            if shape is not None or issubclass(cls, Enum):
                name = _name(cls)
                # Two classes of one name (made by one function, say) cannot be told apart.
                self._named[name] = None if name in self._named else cls
            if shape is not None:
                hints = [field.hint for field in shape.fields.values()]
            else:
                hints = list(hints_of(cls).values()) if is_typed_dict(cls) else []
            for hint in hints:
                waiting.extend(classes_in(hint))

    def shape(self, cls: type) -> Shape | None:
        """Return what is known of a reachable class; None for any other."""
        return self._shapes.get(cls)

    def name(self, cls: type) -> str:
        """Return the name under which `find` will find `cls`.

        Raises:
            Refusal: It would not.
        """
        if cls is self.root:
            return ROOT
        name = _name(cls)
        found = self.find_enum(name) if issubclass(cls, Enum) else self.find(name)
        if found is cls:
            return name
        raise Refusal(self.why_not(cls))

    def find(self, name: str) -> type | None:
        """Return the class that the program declared under `name`."""
        return self._named.get(name)

    def find_enum(self, name: str) -> type[Enum] | None:
        """Return the enum called `name`, declared or in a loaded module."""
        if name in self._named:
            found: Any = self._named[name]
        else:
            module, _, path = name.partition(":")
            found = sys.modules.get(module)
            if not issubclass(type(found), ModuleType):
                return None
            scope = ModuleType.__getattribute__(found, "__dict__")
            for part in path.split("."):
                found = scope.get(part)
                scope = _dict_of(found) if issubclass(type(found), type) else {}
        return found if issubclass(type(found), EnumType) else None

    def why_not(self, cls: type) -> str:
        """Return why no instance of `cls` could be loaded, and what to do about it."""
        if _name(cls) in self._named:
            return f"another class is also called {cls.__qualname__}; rename one of the two"
        if not issubclass(cls, Enum) and shape_of(cls) is None:
            return f"{cls.__qualname__} cannot be saved"
        root = self.root.__qualname__
        return (
            f"{cls.__qualname__} would not be found when loading; annotate the field with it, "
            f"or list it in {root}.__state_classes__"
        )


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
