"""Predicates that tell whether a state is exactly what its annotations say.

msgspec does not check types when it encodes: None in a `str` field is saved without a word, and
cannot be loaded. So a state takes the typed path only if a predicate has seen every value of it.
That is the hottest code of the package, and is therefore generated per class, with all loops and
type tests inlined. For a class `Cart` with `items: list[Item]` it reads

    def matches(o, ...):
        try:
            if type(o) is not Cart or len(d1 := o.__dict__) != 1:
                return False
            v2 = d1['items']
            if type(v2) is not list:
                return False
            for v3 in v2:
                if type(v3) is not Item or len(d4 := v3.__dict__) != 2 or ...:
                    return False
            return True
        except Exception:
            return False

There are two kinds. The exact one exists only for classes that msgspec is known to bring back
unchanged if the predicate holds. The loose one exists for every class, takes what it does not
understand for true, and serves to notice that a stored value no longer fits its annotation.
"""

from collections.abc import Callable, Sequence
from datetime import UTC
from enum import Enum
from functools import partial
from keyword import iskeyword
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from .eligible import (
    KEYS,
    MEMBERS,
    UNEQUAL_WHEN,
    NotExact,
    check_class,
    check_enum,
    check_union,
    require,
)
from .hints import UNION_ORIGINS, hints_of, is_typed_dict, strip
from .registry import Registry
from .scalars import LEAVES
from .shapes import AttributeShape, PlainShape, Shape
from .source import Predicate, Source

_MAX_INLINE_DEPTH = 10
_MAX_DEPTH = 16  # Python allows 20 loops inside each other
_HASHED = frozenset({set, frozenset, dict})
_CONTAINERS = _HASHED | {list, tuple}


class _Leg(NamedTuple):
    """One alternative of an annotation: an exact type, and what else its values must satisfy."""

    cls: type
    body: Callable[[str], None] | None = None


def exact_predicate(registry: Registry) -> Predicate | None:
    """Return a predicate for states of the root class that msgspec can save, or None."""
    try:
        return _PredicateSource(registry, exact=True).predicate()
    except NotExact:
        return None


def loose_predicate(registry: Registry) -> Predicate:
    """Return a predicate for states whose values fit their annotations, as far as can be told."""
    return _PredicateSource(registry, exact=False).predicate()


class _PredicateSource(Source):
    """The source of one predicate.

    A class is tested in line where it is met first, and by a function of its own after that.
    """

    def __init__(self, registry: Registry, *, exact: bool) -> None:
        super().__init__()
        self._registry = registry
        self._exact = exact
        self._open: list[type] = []  # the classes being inlined, from the outside in
        self._inlined: set[type] = set()
        self._functions: dict[type, str] = {}

    def predicate(self) -> Predicate:
        """Write the source and compile it.

        Raises:
            NotExact: An exact predicate was asked for, and the class is not eligible.
        """
        with self.function("matches"):
            with self.block("try:"):
                self._check(self._registry.root, "o")
                self.line("return True")
            with self.block("except Exception:"):
                self.line("return False")
        written: set[type] = set()
        while pending := self._functions.keys() - written:
            cls = pending.pop()
            written.add(cls)
            with self.function(self._functions[cls]):
                self._fields(cls, "o")
                self.line("return True")
        return self.compile("matches")

    def _check(self, hint: Any, value: str) -> None:
        """Write what tests the expression `value` against `hint`."""
        legs = self._legs(hint)
        if legs is None:
            return
        deep = [leg for leg in legs if leg.body]
        flat = [self.constant(leg.cls) for leg in legs if not leg.body]
        if not deep:
            if len(flat) == 1:
                self.test(f"type({value}) is not {flat[0]}")
            else:
                kind = self.name("t")
                first, *others = [f"is not {cls}" for cls in flat]
                others = [f"{kind} {other}" for other in others]
                self.test(" and ".join([f"({kind} := type({value})) {first}", *others]))
            return
        if not value.isidentifier():
            value, expression = self.name("v"), value
            self.line(f"{value} = {expression}")
        if len(legs) == 1:
            ((cls, body),) = legs
            self.test(f"type({value}) is not {self.constant(cls)}")
            if body:
                body(value)
            return
        head = "if"
        for cls, body in deep:
            with self.block(f"{head} type({value}) is {self.constant(cls)}:"):
                if body:
                    body(value)
            head = "elif"
        rest = " and ".join(f"type({value}) is not {cls}" for cls in flat)
        with self.block(f"elif {rest}:" if rest else "else:"):
            self.line("return False")

    def _legs(self, hint: Any) -> list[_Leg] | None:
        """Return the alternatives of `hint`; None if it allows, or may allow, anything."""
        hint, constrained = strip(hint)
        require(not (self._exact and constrained))
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in UNION_ORIGINS:
            return self._union(arguments)
        if origin is Literal:
            return self._literal(arguments)
        if (origin or hint) in _CONTAINERS and not arguments:
            require(not self._exact)
            return [_Leg(origin or hint)]
        if origin in _CONTAINERS:
            return [_Leg(origin, lambda value: self._container(origin, arguments, value))]
        if origin is None and isinstance(hint, type):
            return self._class(hint)
        require(not self._exact)
        return None

    def _class(self, cls: type) -> list[_Leg] | None:
        if cls in LEAVES:
            if not (self._exact and cls in UNEQUAL_WHEN):
                return [_Leg(cls)]
            utc = self.constant(UTC)
            return [_Leg(cls, lambda value: self.test(UNEQUAL_WHEN[cls].format(value, utc)))]
        if issubclass(cls, Enum):
            if self._exact:
                check_enum(cls)
            return [_Leg(cls)]
        if is_typed_dict(cls):
            return [_Leg(dict, lambda value: self._nested(cls, value))]
        if self._registry.shape(cls) is None:
            require(not self._exact)
            return None
        return [_Leg(cls, lambda value: self._nested(cls, value))]

    def _union(self, hints: Sequence[Any]) -> list[_Leg] | None:
        legs: dict[type, _Leg] = {}
        for hint in hints:
            alternatives = self._legs(hint)
            if alternatives is None:
                return None
            for leg in alternatives:
                require(not self._exact or leg.cls not in legs)
                legs[leg.cls] = _Leg(leg.cls) if leg.cls in legs else leg
        if self._exact:
            check_union(list(legs), self._registry)
        return list(legs.values())

    def _literal(self, values: Sequence[Any]) -> list[_Leg]:
        by_type: dict[type, list[Any]] = {}
        for value in values:
            by_type.setdefault(type(value), []).append(value)
        require(not self._exact or {str, int, NoneType}.issuperset(by_type))
        return [_Leg(cls, partial(self._among, frozenset(by_type[cls]))) for cls in by_type]

    def _among(self, allowed: frozenset[Any], value: str) -> None:
        self.test(f"{value} not in {self.constant(allowed)}")

    def _container(self, origin: type, hints: Sequence[Any], value: str) -> None:
        if origin is tuple and hints[-1] is not Ellipsis:
            self.test(f"len({value}) != {len(hints)}")
            for index, hint in enumerate(hints):
                self._check(hint, f"{value}[{index}]")
            return
        if self._exact and origin in _HASHED:
            allowed = KEYS if origin is dict else MEMBERS
            legs = self._legs(hints[0]) or []
            require(all(leg.cls in allowed or issubclass(leg.cls, Enum) for leg in legs))
            require(origin is not dict or len(legs) == 1)
        if self.depth > _MAX_DEPTH:
            require(not self._exact)
            return
        if origin is dict:
            key, item = self.name("k"), self.name("v")
            with self.block(f"for {key}, {item} in {value}.items():"):
                self._check(hints[0], key)
                self._check(hints[1], item)
        else:
            item = self.name("v")
            with self.block(f"for {item} in {value}:"):
                self._check(hints[0], item)

    def _nested(self, cls: type, value: str) -> None:
        require(not (self._exact and cls in self._open))
        if cls in self._inlined or self.depth > _MAX_INLINE_DEPTH:
            function = self._functions.setdefault(cls, self.name("check"))
            self.test(f"not {function}({value})")
        else:
            self._fields(cls, value)

    def _fields(self, cls: type, value: str) -> None:
        self._inlined.add(cls)
        self._open.append(cls)
        shape = self._registry.shape(cls)
        if shape is None:
            self._typed_dict(cls, value)
        elif isinstance(shape, PlainShape):
            self._plain(shape, value)
        else:
            self._declared(shape, value)
        self._open.pop()

    def _declared(self, shape: Shape, value: str) -> None:
        if self._exact:
            check_class(shape)
        in_dict = [name for name in shape.fields if shape.access(name).startswith(".__dict__")]
        attributes = self.name("d")
        if in_dict or (isinstance(shape, AttributeShape) and shape.has_dict):
            self.test(f"len({attributes} := {value}.__dict__) != {len(in_dict)}")
        for name, field in shape.fields.items():
            if name in in_dict:
                self._check(field.hint, f"{attributes}[{name!r}]")
            elif not iskeyword(name):
                self._check(field.hint, value + shape.access(name))

    def _plain(self, shape: PlainShape, value: str) -> None:
        require(not self._exact)
        for name, field in shape.fields.items():
            if shape.has_dict and name not in shape.slots:
                with self.block(f"if {name!r} in {value}.__dict__:"):
                    self._check(field.hint, f"{value}.__dict__[{name!r}]")

    def _typed_dict(self, cls: Any, value: str) -> None:
        key, size = self.name("k"), self.name("n")
        with self.block(f"for {key} in {value}:"):
            self.test(f"type({key}) is not {self.constant(str)}")
        self.line(f"{size} = {len(cls.__required_keys__)}")
        for name, hint in hints_of(cls).items():
            place = f"{value}[{name!r}]"
            if name in cls.__required_keys__:
                self._check(hint, place)
            else:
                with self.block(f"if {name!r} in {value}:"):
                    self.line(f"{size} += 1")
                    self._check(hint, place)
        self.test(f"len({value}) != {size}")
