"""Classes change between deployments; what was saved by the old one loads in the new one."""

import dataclasses
import enum
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Required, TypedDict  # noqa: F401 - Required is named in a string
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from statemgr.errors import StateDecodeError
from statemgr.serialization import MsgpackSerializer
from statemgr.serialization.codec import LOOSE, TAGGED, TYPED

serializer = MsgpackSerializer()


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Item:
    sku: str = ""
    quantity: int = 0


class Pair(NamedTuple):
    left: int
    right: int = 2


class Extra(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int


class Strict(pydantic.BaseModel):
    a: int
    _own: int = pydantic.PrivateAttr(default=2)


class Options(TypedDict):
    name: str
    size: NotRequired[int]


def make(*fields: Any, **namespace: Any) -> Any:
    """Make one release of the class `State`."""
    return dataclasses.make_dataclass("State", fields, namespace=namespace)


def saved(cls: Any, form: int, /, **values: Any) -> bytes:
    """Return a state of `cls` in the form that is asked for."""
    if form == TAGGED:  # a field that msgspec cannot have takes the class off the typed path
        names = [(f.name, f.type, f) for f in dataclasses.fields(cls)]
        cls = make(*names, ("untyped", Any, None))
    data = serializer.serialize(cls(**values), cls)
    assert data[0] == form
    return data


both = pytest.mark.parametrize("form", [TYPED, TAGGED])
untyped = [(), (("more", Any, None),)]
to_both = pytest.mark.parametrize("extra", untyped, ids=["to typed", "to tagged"])

FIELDS: list[tuple[Any, Any]] = [
    ("text", str),
    ("number", int),
    ("tags", set[str]),
    ("day", date),
    ("moment", datetime),
    ("price", Decimal),
    ("colour", Colour),
    ("row", tuple[int, str]),
    ("items", dict[str, list[Item]]),
    ("maybe", Item | None),
    ("choice", Literal["a", 1]),
    ("either", int | float | str | list[int]),
    ("options", Options),
]
VALUES: dict[str, Any] = {
    "text": "t",
    "number": 1,
    "tags": {"a", "b"},
    "day": date(2024, 1, 2),
    "moment": datetime(2024, 1, 2, tzinfo=UTC),
    "price": Decimal("1.10"),
    "colour": Colour.RED,
    "row": (1, "a"),
    "items": {"k": [Item("s", 3)]},
    "maybe": Item(),
    "choice": 1,
    "either": 2.0,
    "options": {"name": "n"},
}


@both
@to_both
def test_fields_come_and_go_and_the_others_stay(form: int, extra: tuple[Any, ...]) -> None:
    """A new field gets its default, a removed one is ignored, on either path and across them."""
    data = saved(make(*FIELDS, ("old", list[int])), form, **VALUES, old=[1])
    new = make(
        *FIELDS, ("fresh", list[int], dataclasses.field(default_factory=lambda: [7])), *extra
    )
    state = serializer.deserialize(data, new)
    assert state == new(**VALUES)
    assert state.fresh == [7]
    assert {name: type(getattr(state, name)) for name in VALUES} == {
        name: type(value) for name, value in VALUES.items()
    }


@both
@to_both
def test_a_new_field_without_a_default_is_an_error(form: int, extra: tuple[Any, ...]) -> None:
    """There is nothing to put in it."""
    data = saved(make(("a", int)), form, a=1)
    with pytest.raises(StateDecodeError, match="needed"):
        serializer.deserialize(data, make(("a", int), ("needed", int), *extra))


@both
@to_both
@pytest.mark.parametrize(
    ("old", "value", "new", "expected"),
    [
        (int, 1, float, 1.0),
        (list[int], [1], set[int], {1}),
        (set[int], {1}, list[int], [1]),
        (str, "x", str | None, "x"),
        (str, "2024-01-02", date, date(2024, 1, 2)),
        (str, "red", Colour, Colour.RED),
        (Options, {"name": "a"}, dict[str, str], {"name": "a"}),
        (tuple[int, int], (1, 2), tuple[int, ...], (1, 2)),
        (int, 5, float | int, 5),
    ],
    ids=str,
)
def test_a_retyped_field_is_converted_where_nothing_is_lost(
    form: int, extra: tuple[Any, ...], old: Any, value: Any, new: Any, expected: Any
) -> None:
    """The same conversions happen on both paths: those of msgspec's decoder."""
    data = saved(make(("a", old)), form, a=value)
    state = serializer.deserialize(data, make(("a", new), *extra))
    assert state.a == expected
    assert type(state.a) is type(expected)


@both
@to_both
@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        (str, "secret", int),
        (str, "secret", date),
        (str, "secret", Colour),
        (str, "secret", Literal["a"]),
        (bool, True, Literal[1]),
        (str, "secret", list[int]),
        (str, "secret", dict[str, int]),
        (str, "secret", Item),
        (str, "secret", Options),
        (str, "secret", int | None),
        (float, 1.5, int),
        (bool, True, int),
        (str | None, None, str),
        (list[str], ["secret"], list[int]),
        (dict[str, str], {"secret": "secret"}, dict[str, int]),
        (tuple[int, ...], (1, 2), tuple[int]),
        (Options, {"name": "secret"}, TypedDict("Needing", {"other": int})),
    ],
    ids=str,
)
def test_a_value_that_no_longer_fits_is_an_error_that_does_not_show_it(
    form: int, extra: tuple[Any, ...], old: Any, value: Any, new: Any
) -> None:
    """Never a reset, and never a state's value in a message."""
    data = saved(make(("a", old)), form, a=value)
    with pytest.raises(StateDecodeError) as caught:
        serializer.deserialize(data, make(("a", new), *extra))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_value_that_was_never_as_annotated_is_not_held_to_annotations() -> None:
    """It came back as it was from the class that saved it, and does so from the next one."""
    old, new = make(("a", int), ("b", int)), make(("a", int), ("b", float))
    data = serializer.serialize(old("text", 1), old)
    assert data[0] == LOOSE
    state = serializer.deserialize(data, new)
    assert (state.a, state.b) == ("text", 1)


@pytest.mark.parametrize("form", [TYPED, TAGGED])
def test_classes_inside_classes_change_too(form: int) -> None:
    """Defaults, removed fields and conversions work at any depth."""

    def release(inner: list[Any]) -> Any:
        cls = dataclasses.make_dataclass("Inner", inner)
        cls.__module__ = __name__
        return make(("inners", list[cls]), ("by", dict[str, cls]))

    old = release([("gone", int, 0), ("kept", int, 0)])
    new = release([("kept", float), ("fresh", str, "f"), ("any", Any, None)])
    (inner,) = old.__annotations__["inners"].__args__
    state = serializer.deserialize(
        saved(old, form, inners=[inner(1, 2)], by={"k": inner(3, 4)}), new
    )
    (loaded,) = state.inners
    assert (loaded.kept, loaded.fresh, loaded.any) == (2.0, "f", None)
    assert type(loaded.kept) is float
    assert state.by["k"].kept == 4.0


def test_every_kind_of_class_takes_defaults() -> None:
    """attrs, structs, named tuples, pydantic models, plain classes, typed dicts."""

    @attrs.define
    class AttrsState:
        a: Any
        b: list[int] = attrs.Factory(list)
        c: int = attrs.field(default=attrs.Factory(lambda self: self.a + 1, takes_self=True))
        d: int = 4

    class StructState(msgspec.Struct):
        a: Any
        b: list[int] = []
        c: int = msgspec.field(default_factory=lambda: 2)
        d: int = 4

    class TupleState(NamedTuple):
        a: Any
        b: Any = ()
        c: int = 2
        d: int = 4

    class ModelState(pydantic.BaseModel):
        a: Any
        b: list[int] = []
        c: int = pydantic.Field(default_factory=lambda: 2)
        d: int = 4
        _private: int = pydantic.PrivateAttr(default=5)

    class PlainState:
        a: Any
        b: tuple[()] = ()
        c = 2
        d = 4

    for cls in (AttrsState, StructState, TupleState, ModelState, PlainState):
        old = make(("a", Any), ("gone", int))
        data = serializer.serialize(old(1, 2), old)
        state = serializer.deserialize(data, cls)
        assert type(state) is cls
        assert (state.a, list(state.b), state.c, state.d) == (1, [], 2, 4)
        nothing = make(("gone", int))
        empty = serializer.serialize(nothing(1), nothing)
        if cls is PlainState:
            assert not hasattr(serializer.deserialize(empty, cls), "a")
        else:
            with pytest.raises(StateDecodeError, match=r"\.a: is missing"):
                serializer.deserialize(empty, cls)
    assert serializer.deserialize(data, ModelState)._private == 5
    assert serializer.deserialize(data, ModelState).model_fields_set == {"a"}


def test_a_typed_dict_loses_and_gains_keys() -> None:
    """A key that need not be there stays away."""

    class Old(TypedDict):
        name: str
        gone: int

    class New(TypedDict):
        name: Any
        fresh: NotRequired[int]

    class Needing(TypedDict):
        name: Any
        fresh: int

    data = serializer.serialize({"name": "a", "gone": 1}, Old)
    assert serializer.deserialize(data, New) == {"name": "a"}
    with pytest.raises(StateDecodeError, match=r"\['fresh'\]: is missing"):
        serializer.deserialize(data, Needing)


def migrating(version: int, migrate: Any, *fields: Any) -> Any:
    """Make a release with a version and a migration."""
    return make(*fields, __state_version__=version, __migrate__=migrate)


OLD = [("tags", set[str]), ("items", list[Item]), ("day", date), ("gone", set[int])]
OLD_VALUES: dict[str, Any] = {
    "tags": {"a"},
    "items": [Item("s", 1)],
    "day": date(2024, 1, 2),
    "gone": {1},
}
NEW = [("labels", set[str]), ("items", list[Item]), ("day", date)]


@both
@to_both
def test_a_migration_gets_plain_fields_and_returns_those_of_today(
    form: int, extra: tuple[Any, ...]
) -> None:
    """Instances are dicts; fields known today have their types; the result is fitted."""
    seen = []

    def migrate(cls: type, data: dict[str, Any], version: int) -> dict[str, Any]:
        seen.append((cls, version, dict(data)))
        data["labels"] = sorted(data.pop("tags"))
        data["items"][0]["quantity"] += 1
        return data

    new = migrating(3, classmethod(migrate), *NEW, *extra)
    state = serializer.deserialize(saved(make(*OLD), form, **OLD_VALUES), new)
    assert state == new({"a"}, [Item("s", 2)], date(2024, 1, 2))
    ((cls, version, data),) = seen
    assert (cls, version) == (new, 0)
    assert data["items"] == [{"sku": "s", "quantity": 2}]
    assert data["day"] == date(2024, 1, 2)
    assert set(data["gone"]) == {1}


def test_a_migration_may_be_a_staticmethod_and_return_instances() -> None:
    """It is called once, for older versions only."""
    calls = []

    def migrate(data: dict[str, Any], version: int) -> dict[str, Any]:
        calls.append(version)
        return {**data, "items": [Item("new")]}

    first = migrating(1, staticmethod(migrate), ("items", list[Item]))
    second = migrating(200, staticmethod(migrate), ("items", list[Item]))
    data = serializer.serialize(first([]), first)
    assert serializer.deserialize(data, first) == first([])
    assert serializer.deserialize(data, second) == second([Item("new")])
    assert serializer.deserialize(serializer.serialize(second([]), second), second) == second([])
    assert calls == [1]


def test_a_migration_sees_what_the_classes_of_today_no_longer_have() -> None:
    """Instances of removed classes are dicts, members of removed enums their names."""

    @dataclasses.dataclass
    class Gone:
        colour: Any

    local = enum.Enum("Local", {"X": 1})
    old = make(("a", Any), __state_classes__=(Gone, Pair, Extra, local))
    value = [Gone(local.X), Pair(1), Extra(a=1, b=2), (Gone(1),), {Pair(3)}]
    data = serializer.serialize(old(value), old)
    seen = []

    def migrate(data: dict[str, Any], _: int) -> dict[str, Any]:
        seen.append(data["a"])
        return {"a": None}

    new = migrating(1, staticmethod(migrate), ("a", Any), ("pair", Pair | None, None))
    assert serializer.deserialize(data, new) == new(None)
    gone, pair, model, nested, hashed = seen[0]
    assert gone == {"colour": "X"}
    assert pair == {"left": 1, "right": 2}
    assert {"a": 1, "b": 2}.items() <= model.items()
    assert nested == ({"colour": 1},)
    assert hashed == {Pair(3)}


@both
def test_a_migration_that_fails_is_an_error_with_its_cause(form: int) -> None:
    """So is one that returns something else, or what does not fit."""

    def fail(data: dict[str, Any], _: int) -> dict[str, Any]:
        raise KeyError("no such field")

    data = saved(make(("a", int)), form, a=1)
    with pytest.raises(StateDecodeError, match="KeyError") as caught:
        serializer.deserialize(data, migrating(1, staticmethod(fail), ("a", int)))
    assert isinstance(caught.value.__cause__, KeyError)
    for result in (None, [], {"a": "text"}, {}):
        new = migrating(1, staticmethod(lambda *_, result=result: result), ("a", int))
        with pytest.raises(StateDecodeError):
            serializer.deserialize(data, new)


@both
def test_without_a_migration_the_ordinary_rules_hold(form: int) -> None:
    """A version alone changes nothing."""
    data = saved(make(("a", int)), form, a=1)
    new = make(("a", int), ("b", int, 2), __state_version__=2**63)
    assert serializer.deserialize(data, new) == new(1, 2)


@both
def test_a_newer_version_is_refused(form: int) -> None:
    """A program that was rolled back does not guess."""
    fields = [("a", int)] if form == TYPED else [("a", Any)]
    new, old = make(*fields, __state_version__=300), make(*fields, __state_version__=299)
    data = serializer.serialize(new(1), new)
    assert data[0] == form
    assert serializer.deserialize(data, new) == new(1)
    with pytest.raises(StateDecodeError, match="version 300"):
        serializer.deserialize(data, old)


def test_only_the_root_class_is_migrated() -> None:
    """A class inside another goes by the ordinary rules."""

    @dataclasses.dataclass
    class Inner:
        a: int = 1
        __state_version__ = 5

        @classmethod
        def __migrate__(cls, data: dict[str, Any], _: int) -> dict[str, Any]:
            raise AssertionError

    root = make(("inner", Inner))
    state = root(Inner(2))
    assert serializer.deserialize(serializer.serialize(state, root), root) == state


def test_an_enum_member_that_is_gone_is_an_error() -> None:
    """Members are saved by name where nothing is annotated, by value where they are."""
    old, new = (
        enum.Enum("Shade", names, module=__name__, qualname="Shade")
        for names in ({"DARK": 1}, {"LIGHT": 1})
    )
    for hint in (Any, list[Any]):
        before, after = (make(("a", hint), __state_classes__=(shade,)) for shade in (old, new))
        with pytest.raises(StateDecodeError, match="Shade"):
            serializer.deserialize(serializer.serialize(before([old.DARK]), before), after)
    before, after = make(("a", old)), make(("a", new))
    assert (
        serializer.deserialize(serializer.serialize(before(old.DARK), before), after).a is new.LIGHT
    )


def test_a_field_that_becomes_annotated_gets_what_its_annotation_asks_for() -> None:
    """Instances of the class or of a subclass stay; dicts of fields become instances."""

    @dataclasses.dataclass
    class Special(Item):
        pass

    before = make(("a", Any), __state_classes__=(Item, Special, Pair))
    for value, hint, expected in (
        (Item("s", 2), Item, Item("s", 2)),
        (Special("s", 2), Item | None, Special("s", 2)),
        ({"sku": "s", "quantity": 2}, Item, Item("s", 2)),
        ([{"left": 1}], tuple[Pair, ...], (Pair(1),)),
        (({"a": 1},), list[dict[str, float]], [{"a": 1.0}]),
        ([1, "x"], list[float | Any], [1, "x"]),
        ([1, "2024-01-02"], list[float | date], [1.0, date(2024, 1, 2)]),
        ("x", "Unknown", "x"),
    ):
        after = make(("a", hint), __state_classes__=(Item, Special, Pair))
        data = serializer.serialize(before(value), before)
        assert data[0] == TAGGED
        state = serializer.deserialize(data, after)
        assert state.a == expected
        assert type(state.a) is type(expected)


def test_typed_bytes_that_are_too_deep_or_extended_are_refused_by_an_untyped_class() -> None:
    """What no typed encoder has written is not taken for what it wrote."""
    cls = make(("a", Any))
    for payload in (b"\x91" * 150 + b"\xc0", b"\xc7\x00\x05", b"\x81\xa1b" * 150 + b"\xc0"):
        with pytest.raises(StateDecodeError):
            serializer.deserialize(bytes([TYPED, 0]) + b"\x81\xa1a" + payload, cls)


def test_a_migration_of_something_without_fields_is_an_error() -> None:
    """There is nothing to hand it."""
    cls = migrating(1, staticmethod(lambda data, _: data), ("a", int))
    for data in (b"\x01\x00\x90", b"\x02\x00\x92\x90\x90"):
        with pytest.raises(StateDecodeError, match="no fields"):
            serializer.deserialize(data, cls)


def test_string_annotations_of_a_typed_dict_say_what_is_required() -> None:
    """The interpreter does not see NotRequired in them."""
    hints = {"name": "Any", "there": "Required[int]", "fresh": "NotRequired[int]"}
    new = TypedDict("new", hints)  # type: ignore[misc]
    old = TypedDict("old", {"name": str, "there": int})  # noqa: UP013
    data = serializer.serialize({"name": "a", "there": 1}, old)
    assert serializer.deserialize(data, new) == {"name": "a", "there": 1}


def inner(*fields: Any, name: str = "Inner") -> Any:
    """Make one release of a class inside of the state."""
    cls = dataclasses.make_dataclass(name, fields)
    cls.__module__ = __name__
    return cls


@both
@to_both
@pytest.mark.parametrize(
    ("around", "wrap"),
    [
        (lambda cls: cls, lambda item: item),
        (lambda cls: list[cls], lambda item: [item]),
        (lambda cls: tuple[int, cls], lambda item: (1, item)),
        (lambda cls: tuple[cls, ...], lambda item: (item,)),
        (lambda cls: dict[str, list[cls]], lambda item: {"k": [item]}),
        (lambda cls: cls | None, lambda item: item),
        (lambda cls: list[cls] | None, lambda item: [item]),
        (lambda cls: inner(("items", list[cls]), name="Outer"), None),
        (lambda cls: TypedDict("Box", {"item": cls}), lambda item: {"item": item}),
    ],
    ids=["itself", "list", "row", "tuple", "dict", "optional", "list?", "class", "typed dict"],
)
def test_a_migration_gets_all_that_was_stored_in_a_class_inside(
    form: int, extra: tuple[Any, ...], around: Any, wrap: Any
) -> None:
    """A nested field that is gone arrives, with its value; one that is new is not filled in."""
    old_item = inner(("name", str), ("day", date), ("price", int), ("codes", list[int]))
    new_item = inner(("name", str), ("day", date), ("codes", set[int]), ("cents", int, 0))
    old, item = make(("a", around(old_item))), old_item("pen", date(2024, 1, 2), 250, [7, 7])
    value = wrap(item) if wrap else old.__annotations__["a"]([item])
    seen: list[dict[str, Any]] = []

    def find(data: Any) -> None:
        if isinstance(data, dict) and "name" in data:
            seen.append(dict(data))
            data["cents"] = data.pop("price")
            data["codes"] = [1]
        elif isinstance(data, dict | list | tuple):
            for part in data.values() if isinstance(data, dict) else data:
                find(part)

    def migrate(data: dict[str, Any], _: int) -> dict[str, Any]:
        find(data)
        return data

    new = migrating(1, staticmethod(migrate), ("a", around(new_item)), *extra)
    state = serializer.deserialize(saved(old, form, a=value), new)
    assert seen == [{"name": "pen", "day": date(2024, 1, 2), "price": 250, "codes": [7, 7]}]
    found = new_item("pen", date(2024, 1, 2), {1}, 250)
    assert state.a == (wrap(found) if wrap else new.__annotations__["a"]([found]))


def test_a_migration_of_a_typed_dict_gets_the_types_of_today() -> None:
    """As one of any other class does."""
    seen = []

    class Old(TypedDict):
        day: date
        gone: int

    class New(TypedDict):
        day: date

    def migrate(data: dict[str, Any], _: int) -> dict[str, Any]:
        seen.append(dict(data))
        return data

    vars_of: Any = New
    vars_of.__state_version__, vars_of.__migrate__ = 1, staticmethod(migrate)
    data = serializer.serialize({"day": date(2024, 1, 2), "gone": 1}, Old)
    assert data[0] == TYPED
    assert serializer.deserialize(data, New) == {"day": date(2024, 1, 2)}
    assert seen == [{"day": date(2024, 1, 2), "gone": 1}]


@pytest.mark.parametrize(
    ("old", "value", "new", "typed", "tagged"),
    [
        (str, "2024-01-02", date, date(2024, 1, 2), "2024-01-02"),
        (str, "1 May", date, "1 May", "1 May"),
        (str, "red", Colour, Colour.RED, "red"),
        (str, str(UUID(int=5)), UUID | None, UUID(int=5), str(UUID(int=5))),
        (int, 1, float, 1.0, 1),
        (date, date(2024, 1, 2), Any, "2024-01-02", date(2024, 1, 2)),
        (date, date(2024, 1, 2), date | str, "2024-01-02", date(2024, 1, 2)),
        (UUID, UUID(int=5), UUID, UUID(int=5), UUID(int=5)),
        (list[UUID], [UUID(int=5)], list[UUID], [UUID(int=5)], [UUID(int=5)]),
        (set[int], {1, 2}, set[int], {1, 2}, {1, 2}),
        (set[int], {1}, list[int], [1], {1}),
        (list[int], [1], set[int], {1}, [1]),
        (list[int], [1, 1], set[int], [1, 1], [1, 1]),
        (list[str], ["x", "2024-01-02"], list[date], ["x", date(2024, 1, 2)], ["x", "2024-01-02"]),
        (list[dict[str, int]], [{"a": 1}], set[Pair], [{"a": 1}], [{"a": 1}]),
        (tuple[int, int], (1, 2), tuple[int], [1, 2], (1, 2)),
        (tuple[int, int], (1, 2), list[int] | set[int], [1, 2], (1, 2)),
        (list[str], ["2024-01-02"], set[date] | list[date], ["2024-01-02"], ["2024-01-02"]),
        (dict[str, str], {"a": "2024-01-02"}, dict[str, date] | Item, *[{"a": "2024-01-02"}] * 2),
        (Colour, Colour.RED, Colour, Colour.RED, Colour.RED),
        (dict[str, int], {"red": 1}, dict[Colour, int], {Colour.RED: 1}, {"red": 1}),
        (
            dict[str, int],
            {"2024-01-02T00:00:00Z": 1, "2024-01-02T00:00:00+00:00": 2},
            dict[datetime, int],
            {"2024-01-02T00:00:00Z": 1, "2024-01-02T00:00:00+00:00": 2},
            {"2024-01-02T00:00:00Z": 1, "2024-01-02T00:00:00+00:00": 2},
        ),
    ],
    ids=str,
)
def test_what_a_migration_gets_for_a_field_of_today(
    old: Any, value: Any, new: Any, typed: Any, tagged: Any
) -> None:
    """From typed bytes what fits the annotation of today; from tagged ones what was saved."""
    for form, expected in ((TYPED, typed), (TAGGED, tagged)):
        seen: list[Any] = []

        def migrate(data: dict[str, Any], _: int, seen: list[Any] = seen) -> dict[str, Any]:
            seen.append(data["a"])
            return {}

        cls = migrating(1, staticmethod(migrate), ("a", new, None))
        serializer.deserialize(saved(make(("a", old)), form, a=value), cls)
        assert seen == [expected]
        assert type(seen[0]) is type(expected)


CARD = inner(("number", str, ""), name="Card")
INVOICE = inner(("address", str, ""), name="Invoice")
GIFT = inner(("number", str, ""), ("note", str, ""), name="Gift")
LIMIT = inner(("number", str), ("limit", int), name="Limit")


class Wire(TypedDict, total=False):
    iban: str


@pytest.mark.parametrize("migrated", [False, True], ids=["plain", "migrated"])
@pytest.mark.parametrize(
    "today",
    [
        INVOICE | CARD | None,
        CARD | INVOICE | None,
        INVOICE | LIMIT | CARD,  # a Limit needs its limit
        Wire | INVOICE | CARD,
    ],
    ids=str,
)
def test_a_field_that_becomes_a_union_of_classes_keeps_its_class(
    today: Any, migrated: bool
) -> None:
    """Also where another one has a default for every field, and would take any dict."""
    data = saved(make(("a", CARD | None), ("b", list[CARD])), TYPED, a=CARD("4"), b=[CARD("5")])
    new = make(("a", today), ("b", list[today]))
    if migrated:
        new.__state_version__, new.__migrate__ = 1, staticmethod(lambda data, _: data)
    assert serializer.deserialize(data, new) == new(CARD("4"), [CARD("5")])


@pytest.mark.parametrize("today", [CARD | GIFT, GIFT | CARD, INVOICE | LIMIT], ids=str)
def test_a_dict_that_no_class_or_more_than_one_could_have_been_is_an_error(today: Any) -> None:
    """Nothing is taken for what it may not be. A migration says what it is."""
    data = saved(make(("a", list[CARD])), TYPED, a=[CARD("secret")])
    with pytest.raises(StateDecodeError, match=r"class|fits") as caught:
        serializer.deserialize(data, make(("a", list[today]), ("more", Any, None)))
    assert "secret" not in str(caught.value)
    with pytest.raises(StateDecodeError):
        serializer.deserialize(data, make(("a", list[today])))

    def migrate(data: dict[str, Any], _: int) -> dict[str, Any]:
        return {"a": [CARD(**item) for item in data["a"]]}

    new = migrating(1, staticmethod(migrate), ("a", list[CARD | today]))
    assert serializer.deserialize(data, new) == new([CARD("secret")])


def test_what_is_in_the_bytes_comes_before_what_could_be_made_of_it() -> None:
    """So says docs/upgrading.md, of types that widen."""
    for old, value, today, expected in (
        (date, date(2024, 1, 2), date | str, "2024-01-02"),
        (set[int], {1}, set[int] | list[int], [1]),
        (Item, Item("s", 1), Item | dict[str, Any], {"sku": "s", "quantity": 1}),
        (list[date], [date(2024, 1, 2)], list, ["2024-01-02"]),
        (tuple[UUID, Colour], (UUID(int=5), Colour.RED), Any, [str(UUID(int=5)), "red"]),
    ):
        new = make(("a", today))
        state = serializer.deserialize(saved(make(("a", old)), TYPED, a=value), new)
        assert (type(state.a), state.a) == (type(expected), expected)


def test_one_class_of_a_union_still_ignores_what_is_gone() -> None:
    """Only between several classes do the names decide."""
    data = saved(make(("a", list[Item])), TYPED, a=[Item("s", 1)])
    slim = inner(("sku", str))
    for today in (slim | None, slim | int | list[int]):
        for extra in untyped:
            new = make(("a", list[today]), *extra)
            assert serializer.deserialize(data, new) == new([slim("s")])


def test_every_kind_of_class_is_told_from_another_by_names() -> None:
    """Literals tell as well."""
    first = inner(("kind", Literal["first"]), ("n", int, 0), name="First")
    second = inner(("kind", Literal["second"]), ("n", int, 0), name="Second")
    slotted = type("Slotted", (), {"__slots__": ("left",), "__module__": __name__})
    slots = slotted()
    slots.left = 1
    for value, union in (
        (second("second", 5), first | second),
        (Pair(1), INVOICE | Pair),
        (Extra(a=1, b=2), INVOICE | Extra),
        (Strict(a=1), INVOICE | Strict),
        ({"iban": "x"}, INVOICE | Wire),
        (slots, INVOICE | slotted),
    ):
        old = make(("a", union))
        data = serializer.serialize(old(value), old)
        new = migrating(1, staticmethod(lambda data, _: data), ("a", union))
        loaded = serializer.deserialize(data, new).a
        assert type(loaded) is type(value)
        assert loaded.left == 1 if value is slots else loaded == value


def test_a_class_that_may_have_any_attribute_may_have_been_any_dict() -> None:
    """As instances they are told apart; what a migration makes a dict of is not guessed at."""
    plain = type("Plain", (), {"__module__": __name__, "__eq__": lambda a, b: vars(a) == vars(b)})
    bare = plain()
    bare.address = "x"
    for value, union in ((bare, INVOICE | plain), (Extra(a=1, b=2), inner(("a", int)) | Extra)):
        old = make(("a", union), ("n", int))
        data = serializer.serialize(old(value, 1), old)
        state = serializer.deserialize(data, make(("a", union), ("n", float)))
        assert (type(state.a), state.a) == (type(value), value)
    for union in (INVOICE | plain, INVOICE | Extra):
        old = make(("a", union))
        data = serializer.serialize(old(INVOICE("x")), old)
        assert serializer.deserialize(data, old) == old(INVOICE("x"))
        data = serializer.serialize(old(bare if union == INVOICE | plain else INVOICE("x")), old)
        new = migrating(1, staticmethod(lambda data, _: data), ("a", INVOICE | plain))
        with pytest.raises(StateDecodeError, match="several"):
            serializer.deserialize(data, new)


def test_a_union_inside_of_a_union_counts_as_one() -> None:
    """And a class that is named twice as one class."""
    data = saved(make(("a", CARD)), TYPED, a=CARD("4"))
    for today in (
        Annotated[INVOICE | None, "note"] | CARD,
        INVOICE | Annotated[CARD, "note"] | CARD,
    ):
        new = make(("a", today))
        assert serializer.deserialize(data, new) == new(CARD("4"))


def test_a_dict_that_a_typed_dict_takes_stays_one() -> None:
    """Whatever class could be made of it."""
    named = inner(("name", str, ""), name="Named")
    old = make(("a", named | Options), ("n", int))
    data = serializer.serialize(old({"name": "x"}, 1), old)
    new = make(("a", named | Options), ("n", float))
    assert serializer.deserialize(data, new) == new({"name": "x"}, 1.0)


@dataclasses.dataclass
class And:
    parts: "list[And | Or | int]"


@dataclasses.dataclass
class Or:
    parts: "list[And | Or | int]"


def test_what_cannot_be_told_is_refused_soon() -> None:
    """Not after trying each class for each part of each part."""
    tree: Any = And([1])
    for _ in range(17):
        tree = Or([tree])
    old = make(("a", Any), __state_classes__=(And, Or))
    data = serializer.serialize(old(tree), old)
    new = migrating(1, staticmethod(lambda data, _: data), ("a", And | Or))
    begin = time.process_time()
    with pytest.raises(StateDecodeError, match="several"):
        serializer.deserialize(data, new)
    assert time.process_time() - begin < 1
