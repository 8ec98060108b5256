"""What goes into the serializer comes back equal, types included, or is refused with its path."""

import dataclasses
import enum
import io
import math
import socket
import struct
import sys
import types
import typing
import uuid
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, ClassVar, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statemgr.errors import SettingsError, StateEncodeError
from statemgr.serialization import MsgpackSerializer
from statemgr.serialization.codec import LOOSE, TAGGED, TYPED
from statemgr.serialization.foreign import StructShape

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"
    AZURE = "blue"  # noqa: PIE796 - an alias


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Size(enum.StrEnum):
    S = "s"


class Tint(str, enum.Enum):  # noqa: UP042 - the older way is still in use
    PALE = "pale"


class Mixed(enum.Enum):
    ONE = 1
    TEXT = "text"
    PAIR = (1, 2)


class Giant(enum.Enum):
    ONE = 1 << 70


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4
    ALL = 7


class Bits(enum.IntFlag, boundary=enum.KEEP):
    A = 1
    B = 2


class Outer:
    class Inner(enum.Enum):
        X = object()


@dataclasses.dataclass
class Item:
    sku: str = ""
    quantity: int = 0


@dataclasses.dataclass
class Cart:
    owner: str = ""
    items: list[Item] = dataclasses.field(default_factory=list)
    tags: set[str] = dataclasses.field(default_factory=set)
    total: float = 0.0
    version: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: float = 0.5


class Pair(NamedTuple):
    left: int
    right: Any = None


Bare = namedtuple("Bare", "a b")


class Options(TypedDict):
    name: str
    size: NotRequired[int]


class Event(msgspec.Struct):
    name: str
    when: datetime | None = None
    data: list[int] = []


class FrozenEvent(msgspec.Struct, frozen=True, kw_only=True, tag="frozen", rename="camel"):
    event_name: str
    payload: Any = None


class LoudEvent(msgspec.Struct):
    name: str

    def __post_init__(self) -> None:
        raise AssertionError("loading must not run this")


@attrs.define
class Account:
    number: int
    notes: list[str] = attrs.Factory(list)


@attrs.frozen
class Rule:
    text: str = attrs.field(converter=str, validator=attrs.validators.min_len(1))
    _secret: int = 3


class Plain:
    """Without annotations."""

    colour = "red"

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __repr__(self) -> str:
        return f"Plain({vars(self)})"  # a test's name is the same each time


class Slotted:
    __slots__ = ("__hidden", "shown")

    def __init__(self, shown: Any, hidden: Any) -> None:
        self.shown = shown
        self.__hidden = hidden


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    name: str = pydantic.Field(default="none", max_length=5)
    points: list[int] = pydantic.Field(default_factory=list)
    anything: Any = None
    _count: int = pydantic.PrivateAttr(default=0)
    _late: int = pydantic.PrivateAttr()


@dataclasses.dataclass
class Typed:
    """Every kind of field that msgspec saves directly."""

    text: str
    number: int
    real: float
    truth: bool
    raw: bytes
    nothing: None
    day: date
    moment: datetime
    clock: time
    span: timedelta
    ident: uuid.UUID
    price: Decimal
    colour: Colour
    level: Level
    size: Size
    tint: Tint
    choice: Literal["a", 1, None]
    maybe: str | None
    either: int | float | str | list[int] | None
    point: Point | None
    row: tuple[int, str]
    rows: list[tuple[float, ...]]
    tags: frozenset[str]
    numbers: set[int]
    by_name: dict[str, list[Item]]
    by_number: dict[int, Item]
    options: Options
    event: Event
    account: Account


@dataclasses.dataclass
class Holder:
    """Fields whose annotations tell nothing."""

    anything: Any = None
    things: list = dataclasses.field(default_factory=list)
    table: dict = dataclasses.field(default_factory=dict)

    __state_classes__ = (
        *(Item, Cart, Point, Pair, Bare, Event, FrozenEvent, Account, Rule, Plain, Slotted, Model),
    )


def same(a: Any, b: Any) -> bool:
    """Compare with types, signs, time zones, exponents and order, all the way down."""
    kind = type(a)
    if kind is not type(b):
        return False
    if kind is float:
        return struct.pack(">d", a) == struct.pack(">d", b)
    if kind is Decimal:
        return a.as_tuple() == b.as_tuple()
    if kind in (datetime, time):
        return (
            a.replace(tzinfo=None) == b.replace(tzinfo=None)
            and a.fold == b.fold
            and same(a.tzinfo, b.tzinfo)
        )
    if kind is timezone:
        return a.__getinitargs__() == b.__getinitargs__()
    if kind is ZoneInfo:
        return a.key == b.key
    if issubclass(kind, enum.Enum):
        return a is b
    if kind in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if kind in (set, frozenset):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if kind is dict:
        return same(list(a.items()), list(b.items()))
    if issubclass(kind, tuple):
        return same(tuple(a), tuple(b))
    if kind.__module__ == __name__:
        return same(attributes(a), attributes(b))
    return bool(a == b)


def attributes(instance: Any) -> dict[str, Any]:
    """Return what an instance has in its dict and its slots."""
    found = dict(getattr(instance, "__dict__", {}))
    for base in type(instance).__mro__:
        for name, member in vars(base).items():
            if isinstance(member, types.MemberDescriptorType) and hasattr(instance, name):
                found[name] = member.__get__(instance)
    return dict(sorted(found.items()))


serializer = MsgpackSerializer()


def round_trip(state: T, cls: type[T] | None = None) -> T:
    """Save and load."""
    cls = cls or type(state)
    return serializer.deserialize(serializer.serialize(state, cls), cls)


def form(state: Any, cls: type | None = None) -> int:
    """Return the form in which a state is saved."""
    return serializer.serialize(state, cls or type(state))[0]


text = st.text(st.characters(), max_size=8)  # lone surrogates included
any_float = st.floats(allow_nan=True, allow_infinity=True)
any_int = st.integers() | st.integers(-(2**70), 2**70)
decimals = st.decimals(places=None) | st.sampled_from(
    [
        Decimal(s)
        for s in ("NaN", "-NaN12", "sNaN", "Infinity", "-0", "0E-30", "1E+999999999", "1.10")
    ]
)
zones = st.sampled_from(
    [
        None,
        UTC,
        timezone(timedelta(hours=-3, minutes=-30)),
        timezone(timedelta(microseconds=1)),
        timezone(timedelta(0), "zero"),
        timezone(timedelta(hours=1), "\ud800"),
        ZoneInfo("Europe/Paris"),
        ZoneInfo("UTC"),
    ]
)
folds = st.integers(0, 1)
moments = st.builds(lambda d, z, f: d.replace(tzinfo=z, fold=f), st.datetimes(), zones, folds)
clocks = st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), zones, folds)
enums = st.sampled_from(
    [
        *Colour,
        *Level,
        *Size,
        *Mixed,
        *Rights,
        Rights(0),
        Rights.READ | Rights.RUN,
        Rights.ALL,
        *Tint,
        *Bits,
        Bits(0),
        Bits(3),
        Bits(9),
        Bits(1 << 90),
        Outer.Inner.X,
    ]
)
hashable_leaves = (
    st.none() | st.booleans() | any_int | any_float | text | st.binary(max_size=8)
    | st.dates() | moments | clocks | st.timedeltas() | st.uuids() | enums
    | st.builds(Point, any_int, any_float)
)  # fmt: skip
hashables = st.recursive(
    hashable_leaves,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


@st.composite
def models(draw: Any, inner: Any) -> Model:
    """Make models whose fields nobody has validated."""
    model = Model.model_construct(
        **draw(st.fixed_dictionaries({}, optional={"name": text, "anything": inner, "more": inner}))
    )
    if draw(st.booleans()):
        model._late = draw(any_int)
    return model


def instances(inner: Any) -> Any:
    """Make instances of every kind of class."""
    names = st.sampled_from(["a", "b", "__c", "not a name"])
    return (
        st.builds(Item, text, any_int)
        | st.builds(Pair, inner, inner)
        | st.builds(Bare, inner, inner)
        | st.builds(Event, text, st.none() | moments, st.lists(any_int, max_size=2))
        | st.builds(FrozenEvent, event_name=text, payload=inner)
        | st.builds(Account, any_int, st.lists(text, max_size=2))
        | st.builds(Rule, text.filter(len), any_int)
        | st.builds(Slotted, inner, inner)
        | st.dictionaries(names, inner, max_size=3).map(lambda d: Plain(**d))
        | models(inner)
    )


values = st.recursive(
    hashables | decimals,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(hashables, max_size=3)
        | st.dictionaries(hashables, inner, max_size=3)
        | instances(inner)
    ),
    max_leaves=12,
)

ints64 = st.integers(-(2**63), 2**64 - 1)
utf8 = st.text(max_size=8)
items = st.builds(Item, utf8, ints64)
plain_moments = st.builds(
    lambda d, z: d.replace(tzinfo=z, fold=0), st.datetimes(), st.sampled_from([None, UTC])
)
typed_fields = {
    "text": utf8,
    "number": ints64,
    "real": any_float,
    "truth": st.booleans(),
    "raw": st.binary(max_size=8),
    "nothing": st.none(),
    "day": st.dates(),
    "moment": plain_moments,
    "clock": st.times().map(lambda t: t.replace(fold=0)),
    "span": st.timedeltas(),
    "ident": st.uuids(),
    "price": decimals,
    "colour": st.sampled_from(Colour),
    "level": st.sampled_from(Level),
    "size": st.sampled_from(Size),
    "tint": st.sampled_from(Tint),
    "choice": st.sampled_from(["a", 1, None]),
    "maybe": st.none() | utf8,
    "either": ints64 | any_float | utf8 | st.lists(ints64, max_size=2) | st.none(),
    "point": st.none() | st.builds(Point, ints64, any_float),
    "row": st.tuples(ints64, utf8),
    "rows": st.lists(st.lists(any_float, max_size=2).map(tuple), max_size=2),
    "tags": st.frozensets(utf8, max_size=2),
    "numbers": st.sets(ints64, max_size=2),
    "by_name": st.dictionaries(utf8, st.lists(items, max_size=2), max_size=2),
    "by_number": st.dictionaries(ints64, items, max_size=2),
    "options": st.fixed_dictionaries({"name": utf8}, optional={"size": ints64}),
    "event": st.builds(Event, utf8, st.none() | plain_moments, st.lists(ints64, max_size=2)),
    "account": st.builds(Account, ints64, st.lists(utf8, max_size=2)),
}
quick = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(state=st.fixed_dictionaries(typed_fields).map(lambda fields: Typed(**fields)))
def test_a_state_that_is_as_annotated_takes_the_typed_path_and_comes_back_the_same(
    state: Typed,
) -> None:
    """For every kind of field on msgspec's list, msgspec is exact."""
    assert form(state) == TYPED
    assert same(round_trip(state), state)


@quick
@given(value=values)
def test_any_supported_value_comes_back_the_same_where_nothing_is_annotated(value: Any) -> None:
    """Types, signs, zones, folds, exponents and the order of dicts survive the tagged path."""
    state = Holder(value, [value], {"key": value})
    assert same(round_trip(state), state)


NAIVE = datetime(2024, 1, 2)  # noqa: DTZ001 - naive ones are part of the contract
AS_ANNOTATED = Typed(
    "t", 1, 1.0, True, b"r", None, date(2024, 1, 2), NAIVE, time(3), timedelta(4),
    uuid.UUID(int=5), Decimal(6), Colour.RED, Level.LOW, Size.S, Tint.PALE, "a", None, 1, None,
    (1, "b"), [(1.0,)], frozenset("c"), {7}, {"n": [Item()]}, {8: Item()}, {"name": "o"},
    Event("e"), Account(9),
)  # fmt: skip


@quick
@given(
    name=st.sampled_from(sorted(typed_fields)), value=hashables | st.lists(hashables, max_size=2)
)
def test_a_value_that_is_not_as_annotated_comes_back_as_it_was(name: str, value: Any) -> None:
    """None in a str field, an int in a float field, an IntEnum in an int field: nothing is lost."""
    state = dataclasses.replace(AS_ANNOTATED, **{name: value})
    assert same(round_trip(state), state)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, TYPED),
        ({"text": None}, LOOSE),
        ({"text": uuid.UUID(int=1)}, LOOSE),
        ({"real": 1}, LOOSE),
        ({"truth": 1}, LOOSE),
        ({"number": True}, LOOSE),
        ({"number": Level.LOW}, LOOSE),
        ({"text": Size.S}, LOOSE),
        ({"by_name": {"a": ()}}, LOOSE),
        ({"row": (1, "a", 2)}, LOOSE),
        ({"choice": "b"}, LOOSE),
        ({"choice": True}, LOOSE),
        ({"point": Item()}, LOOSE),
        ({"options": {}}, LOOSE),
        ({"options": {"name": "a", "other": 1}}, LOOSE),
        ({"number": 2**64}, TAGGED),
        ({"text": "\ud800"}, TAGGED),
        ({"moment": datetime(2024, 1, 2, tzinfo=ZoneInfo("Europe/Paris"))}, TAGGED),
        ({"moment": NAIVE.replace(fold=1)}, TAGGED),
        ({"clock": time(1, tzinfo=UTC)}, TAGGED),
    ],
)
def test_the_path_is_chosen_by_the_live_value(fields: dict[str, Any], expected: int) -> None:
    """The typed path is used only where it is exact, and the form says whether annotations held."""
    state = dataclasses.replace(AS_ANNOTATED, **fields)
    assert form(state) == expected
    assert same(round_trip(state), state)


@pytest.mark.parametrize(
    "state",
    [
        None, True, 0, 2**100, -0.0, math.nan, "", "\udfff", b"", [], (), set(), frozenset(), {},
        [1, [2]], {(1, 2): {3}}, Colour.RED, Rights.READ | Rights.RUN, Decimal("1.10"),
        datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1), date.min, time.max,
        timedelta.min, uuid.UUID(int=1), Pair(1, "b"), Bare(1, 2), Event("e"), Account(1),
        Rule("r"), Plain(a=1), Slotted(1, 2), Model(name="a", more=[1]),
        FrozenEvent(event_name="x"), Item(), Point(1),
    ],
    ids=lambda state: type(state).__name__,
)  # fmt: skip
def test_any_supported_type_may_be_the_root(state: Any) -> None:
    """A state need not be a class of the program; falsy ones are states like any other."""
    assert same(round_trip(state), state)


def test_a_typed_dict_may_be_the_root() -> None:
    """It takes the typed path as it is declared, and the tagged one with more or less in it."""
    assert round_trip({"size": 1, "name": "a"}, Options) == {"size": 1, "name": "a"}
    assert form({"name": "a"}, Options) == TYPED
    assert form({"name": "a", "other": ()}, Options) == LOOSE
    assert round_trip({"other": ()}, Options) == {"other": ()}


def test_pydantic_models_come_back_equal_without_validation() -> None:
    """Private and extra values and the set of given fields survive; no validator runs."""
    model = Model.model_construct(name="far too long", more=(1,))
    model._count = 5
    back = round_trip(model)
    assert back == model
    assert back.model_fields_set == model.model_fields_set == {"name"}
    assert back._count == 5
    assert back.__pydantic_extra__ == {"more": (1,)}


def test_loading_runs_no_code_of_the_class() -> None:
    """Neither __init__ nor __new__, __post_init__, converters, validators or __setattr__ run."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    @dataclasses.dataclass
    class Careful:
        a: int
        b: dict[str, int]

    @dataclasses.dataclass
    class Loud:
        a: int

        def __post_init__(self) -> None:
            fail()

    @attrs.define
    class Checked:
        a: int = attrs.field(validator=fail, converter=fail, on_setattr=fail)

        def __attrs_post_init__(self) -> None:
            fail()

    careful = Careful(1, {"k": 2})
    data = serializer.serialize(careful, Careful)
    assert data[0] == TYPED
    Careful.__init__ = Careful.__setattr__ = fail  # type: ignore[method-assign, assignment]
    assert serializer.deserialize(data, Careful) == careful
    loud, checked = object.__new__(Loud), object.__new__(Checked)
    loud.a = 1
    object.__setattr__(checked, "a", 1)
    event = StructShape(LoudEvent).make({"name": "n"})
    for state in (loud, checked, event):
        assert form(state) == TAGGED
        assert same(attributes(round_trip(state)), attributes(state))


def test_a_cached_property_or_any_other_undeclared_attribute_is_refused() -> None:
    """What would be lost is not saved."""
    item = Item()
    item.note = 1  # type: ignore[attr-defined]
    account = attrs.make_class("Loose", ["a"], slots=False)(1)
    account.extra = 2
    for state, cls, name in ((Cart("u", [item]), Cart, "Cart.items[0].note"),
                             (account, type(account), "Loose.extra")):  # fmt: skip
        with pytest.raises(StateEncodeError) as caught:
            serializer.serialize(state, cls)
        assert caught.value.path == name
        assert "not a declared field" in caught.value.reason


def test_a_missing_attribute_is_refused_unless_the_class_serves_it() -> None:
    """A default would take the place of a value that was never there."""

    @dataclasses.dataclass
    class Lazy:
        served: int = dataclasses.field(init=False, default=3)
        later: int = dataclasses.field(init=False)

    with pytest.raises(StateEncodeError) as caught:
        serializer.serialize(Lazy(), Lazy)
    assert caught.value.path == "Lazy.later"
    lazy = Lazy()
    lazy.later = 4
    assert round_trip(lazy) == lazy
    empty = object.__new__(Point)
    with pytest.raises(StateEncodeError):
        serializer.serialize(empty, Point)


class Open(enum.IntEnum):
    KNOWN = 1

    @classmethod
    def _missing_(cls, value: object) -> "Open":
        member = int.__new__(cls, value)  # type: ignore[call-overload]
        member._name_, member._value_ = "UNKNOWN", value
        return member


class Text(str):
    pass


class Numbers(list):
    pass


class Zone(tzinfo):
    pass


@pytest.mark.parametrize(
    "value",
    [
        Text("a"), Numbers(), OrderedDict(), bytearray(), range(3), object(), len, Item, 1j,
        typing, lambda: None, ValueError("v"), datetime(2024, 1, 1, tzinfo=Zone()), timezone,
        enum.Enum("Local", {"A": 1}).A, iter([]), slice(1), NotImplemented, Open(2), ...,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_would_not_come_back_is_refused_with_its_path(value: Any) -> None:
    """A subclass of a builtin would lose its type; a handle, a function, a class mean nothing."""
    with pytest.raises(StateEncodeError) as caught:
        serializer.serialize(Holder(things=[0, {"k": (value,)}]), Holder)
    assert caught.value.path == "Holder.things[1][#0][0]"


def test_the_path_leads_to_the_value() -> None:
    """Fields by name, items by position; keys are values and are named by position only."""
    with socket.socket() as handle:
        for state, path in (
            (Cart("u", [Item(), Item(handle)]), "Cart.items[1].sku"),
            (Holder(table={"secret": 1, handle: 2}), "Holder.table[key #1]"),
            (Holder(table={"secret": handle}), "Holder.table[#0]"),
            (Holder({handle}), "Holder.anything[#0]"),
            (Holder(Pair(1, handle)), "Holder.anything.right"),
        ):
            with pytest.raises(StateEncodeError) as caught:
                serializer.serialize(state, type(state))
            assert caught.value.path == path
            assert caught.value.reason == "socket cannot be saved"


def test_a_class_that_loading_would_not_find_is_refused_with_the_remedy() -> None:
    """The reason tells to annotate the field or to list the class."""

    @dataclasses.dataclass
    class Stranger:
        a: int = 1

    @dataclasses.dataclass
    class Welcoming:
        anything: Any = None
        __state_classes__: ClassVar = (Stranger,)

    with pytest.raises(StateEncodeError, match=r"__state_classes__") as caught:
        serializer.serialize(Holder([Stranger()]), Holder)
    assert caught.value.path == "Holder.anything[0]"
    assert same(round_trip(Welcoming(Stranger(2))).anything.a, 2)


def test_two_classes_of_one_name_are_not_confused() -> None:
    """Classes made by one function share a name, which would find either."""
    first, second = (dataclasses.make_dataclass("Twin", ["a"]) for _ in range(2))
    holder = type("Both", (Holder,), {"__state_classes__": (first, second)})
    with pytest.raises(StateEncodeError, match="rename"):
        serializer.serialize(holder(first(1)), holder)


def test_the_wrong_object_is_refused() -> None:
    """Only an instance of exactly the class can come back as one."""

    class Special(Cart):
        pass

    for state in ("hello", Special(), None, Cart):
        with pytest.raises(StateEncodeError) as caught:
            serializer.serialize(state, Cart)
        assert caught.value.path == "Cart"
    with pytest.raises(TypeError):
        serializer.serialize([1], list[int])


def test_cycles_and_deep_nesting_are_refused() -> None:
    """No RecursionError leaves the serializer, and what is saved is never too deep to load."""
    cycle: list[Any] = []
    cycle.append(cycle)
    table: dict[str, Any] = {}
    table["self"] = [table]
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for state in (cycle, table, deep):
        with pytest.raises(StateEncodeError, match="levels deep"):
            serializer.serialize(state, type(state))
    just: list[Any] = []
    for _ in range(99):
        just = [just]
    assert round_trip(just) == just
    with pytest.raises(StateEncodeError):
        serializer.serialize([just], list)
    while deep:  # or its end would need as many C frames as it is deep
        deep = deep.pop()


def test_shared_parts_that_multiply_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reference is saved; sixty levels of two would fill any memory, twenty show it."""
    monkeypatch.setattr("statemgr.serialization.tagged.MAX_VALUES", 1000)
    wide: list[Any] = []
    for _ in range(20):
        wide = [wide, wide]
    with pytest.raises(StateEncodeError, match="more than 1000 values"):
        serializer.serialize(wide, list)


@dataclasses.dataclass
class Node:
    value: int
    children: "list[Node]" = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@dataclasses.dataclass
class Boxed:
    box: Box[int]
    item: Item


def test_recursive_and_generic_classes_take_the_tagged_path() -> None:
    """The typed path is not asked to bound their depth, or to know their parameters."""
    node = Node(1, [Node(2), Node(3, [Node(4)])])
    assert form(node) == TAGGED
    assert round_trip(node) == node
    boxed = Boxed(Box[int](1), Item("a", 2))
    assert form(boxed) == TAGGED
    assert round_trip(boxed) == boxed
    node.children[1].value = "sloppy"  # type: ignore[assignment]
    assert form(node) == LOOSE


def test_annotations_that_cannot_be_resolved_make_only_their_own_field_unknown() -> None:
    """A class local to a function takes the tagged path; its other fields are still known."""

    @dataclasses.dataclass
    class Local:
        item: "Item"
        unknown: "NotImported" = 1  # type: ignore[name-defined] # noqa: F821
        again: "list[Local] | None" = None

    state = Local(Item("a", 1), [2], [Local(Item())])
    assert form(state) == TAGGED
    assert round_trip(state) == state


def class_with(annotation: Any) -> type:
    """Return a dataclass with one field."""
    return dataclasses.make_dataclass("Made", [("field", annotation)])


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (typing.Annotated[int, "note"], 1),
        (typing.NewType("Name", str), "a"),
        (typing.Optional[int], 1),  # noqa: UP045
        (typing.List[int], [1]),  # noqa: UP006
        (int | list[str] | Item | None, Item()),
        (uuid.UUID | int, uuid.UUID(int=1)),
        (dict[Size, list[None]], {Size.S: [None]}),
        (set[Level], {Level.LOW}),
    ],
    ids=str,
)
def test_annotations_that_only_wrap_a_type_take_the_typed_path(annotation: Any, value: Any) -> None:
    """Annotated, NewType and unions that MessagePack tells apart cost nothing."""
    cls = class_with(annotation)
    assert form(cls(value)) == TYPED
    assert same(vars(round_trip(cls(value))), {"field": value})


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (typing.Annotated[int, msgspec.Meta(gt=5)], 1),
        (Any, 1), (object, 1), (list, [1]), (dict, {1: 2}), (Rights, Rights.READ),
        (Mixed, Mixed.PAIR), (Plain, Plain(a=1)), (str | date, date.min), (Decimal | float, 1.5),
        (str | uuid.UUID, uuid.UUID(int=1)),
        (list[int] | set[int], {1}), (Item | Point, Point(1)), (typing.Sequence[int], [1]),
        (set[uuid.UUID], {uuid.UUID(int=1)}), (dict[float, int], {1.0: 1}), (tuple[()], ()),
        (dict[tuple[int, int], str], {(1, 2): "a"}), (Pair, Pair(1)), (Model, Model()),
        (Rule, Rule("a")), (FrozenEvent, FrozenEvent(event_name="e")), (LoudEvent | None, None),
        (Literal[Colour.RED], Colour.RED), (Giant, Giant.ONE), (Literal[True], True),
        (type | None, None), ({"no": "type"}, 1), (T, 1), (bytearray | None, None),
        (typing.Callable[[int], str] | None, None),
    ],
    ids=str,
)  # fmt: skip
def test_annotations_that_msgspec_may_not_be_exact_for_take_the_tagged_path(
    annotation: Any, value: Any
) -> None:
    """When in doubt, the slower path, which is always exact."""
    cls = class_with(annotation)
    assert form(cls(value)) in (TAGGED, LOOSE)
    assert same(vars(round_trip(cls(value))), {"field": value})


def test_classes_with_code_or_names_of_their_own_take_the_tagged_path() -> None:
    """Post-init, private names, init=False, InitVar, aliases, renames, omitted defaults."""

    @dataclasses.dataclass
    class Post:
        a: int = 1

        def __post_init__(self) -> None:
            self.a += 1

    @dataclasses.dataclass
    class Private:
        _a: int = 1

    @dataclasses.dataclass
    class Initial:
        a: int
        seed: dataclasses.InitVar[int] = 5

    @dataclasses.dataclass
    class Derived:
        a: int = dataclasses.field(default=1, init=False)

    @attrs.define
    class Converting:
        a: int = attrs.field(converter=int)

    @attrs.define
    class SelfMade:
        a: int = 1
        b: int = attrs.field(default=attrs.Factory(lambda self: self.a, takes_self=True))

    class Omitting(msgspec.Struct, omit_defaults=True):
        a: float = 0.0

    class Strict(msgspec.Struct, forbid_unknown_fields=True):
        a: int = 1

    class Positional(msgspec.Struct, array_like=True):
        a: int = 1

    class Labelled(msgspec.Struct, tag="label"):
        a: int = 1

    for state in (
        Converting(1), Post(), Private(), Initial(1), Derived(), SelfMade(), Omitting(-0.0),
        Strict(), Positional(), Labelled(),
    ):  # fmt: skip
        assert form(state) in (TAGGED, LOOSE)
        assert repr(round_trip(state)) == repr(state)


def test_an_attribute_behind_a_property_is_read_and_set_in_the_dict() -> None:
    """Loading does not go through the class."""

    @dataclasses.dataclass
    class Guarded:
        a: int

    state = Guarded(1)
    Guarded.a = property(lambda _: 2, lambda *_: pytest.fail("set"))  # type: ignore[assignment]
    assert form(state) == TAGGED
    assert vars(round_trip(state)) == {"a": 1}


def test_a_slot_that_is_no_field_is_refused_where_it_is_filled() -> None:
    """A base class may have more places than the dataclass declares."""

    class Base:
        __slots__ = ("more",)

    @dataclasses.dataclass(slots=True)
    class Child(Base):
        a: int

    state = Child(1)
    assert round_trip(state) == state
    state.more = 2
    with pytest.raises(StateEncodeError) as caught:
        serializer.serialize(state, Child)
    assert caught.value.path == "Child.more"


def test_kinds_of_class_that_take_the_typed_path() -> None:
    """Frozen, slots, keyword-only, inherited, with class variables or aliases."""

    @attrs.define
    class Aliased:
        a: int = attrs.field(default=1, alias="b")

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Base:
        a: int
        known: ClassVar[list[int]] = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Child(Base):
        b: str = "b"

    for state in (Base(a=1), Child(a=1, b="c"), Aliased(2)):
        assert form(state) == TYPED
        assert round_trip(state) == state


def test_many_keys_of_one_hash_are_refused() -> None:
    """They would be loaded in the square of their number."""
    step = sys.hash_info.modulus
    alike = {i * step: None for i in range(1200)}
    for state in (alike, set(alike)):
        with pytest.raises(StateEncodeError, match="same hash"):
            serializer.serialize(state, type(state))


@pytest.mark.parametrize("version", [-1, True, "1", 2**64])
def test_a_state_version_that_cannot_be_stored_is_a_settings_error(version: Any) -> None:
    """The class says what is wrong with it at its first use."""
    cls = type("Odd", (), {"__state_version__": version})
    with pytest.raises(SettingsError) as caught:
        serializer.serialize(cls(), cls)
    assert caught.value.variable == "__state_version__"
    cls = type("Odd", (), {"__state_classes__": ("Item",)})
    with pytest.raises(SettingsError):
        serializer.serialize(cls(), cls)


def test_a_time_zone_that_its_key_does_not_tell_is_refused() -> None:
    """A zone read from a file may be called anything."""
    utc = b"TZif" + bytes(16) + struct.pack(">6I", 0, 0, 0, 0, 1, 4) + bytes(6) + b"UTC\0"
    for key in (None, "Europe/Paris"):
        zone = ZoneInfo.from_file(io.BytesIO(utc), key=key)
        with pytest.raises(StateEncodeError, match="time zone"):
            serializer.serialize([time(1, tzinfo=zone)], list)


def test_reading_an_instance_may_run_its_code_and_fail() -> None:
    """The error names the exception's type, and not its text."""

    class Guarded:
        def __getattribute__(self, name: str) -> Any:
            raise PermissionError("secret")

    with pytest.raises(StateEncodeError, match="PermissionError") as caught:
        serializer.serialize(Guarded(), Guarded)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_stack_that_is_nearly_full_is_not_taken_for_damage() -> None:
    """What cannot be loaded here may be as good as any: it must not be set aside."""
    state: list[Any] = []
    for _ in range(90):
        state = [state]
    data = serializer.serialize(state, list)

    def descend(call: Any) -> Any:
        try:
            return descend(call)
        except RecursionError:
            return call()

    with pytest.raises(StateEncodeError, match="deep"):
        descend(lambda: serializer.serialize(state, list))
    # A RecursionError each time, on the way up, until there is room enough.
    assert descend(lambda: serializer.deserialize(data, list)) == state


def test_instances_that_hold_more_or_less_than_their_fields_are_refused() -> None:
    """For every kind of class."""

    class Widened(Pair):
        pass

    class Roomy(msgspec.Struct, dict=True):
        a: int = 1

    class Closed(pydantic.BaseModel):
        a: int = 1
        _private: int = pydantic.PrivateAttr(default=2)

    wide, roomy, named = Widened(1), Roomy(), Plain()
    wide.extra = roomy.extra = 1
    vars(named)[1] = 2
    unset = Event("e")
    del unset.name
    cached, extra, bare, stripped = (Closed() for _ in range(4))
    vars(cached)["b"] = 1
    object.__setattr__(extra, "__pydantic_extra__", {"b": 1})
    del vars(bare)["a"]
    object.__setattr__(stripped, "__pydantic_private__", None)
    for state in (
        wide, roomy, named, cached, extra, bare, stripped, unset, tuple.__new__(Pair, (1,)),
    ):  # fmt: skip
        with pytest.raises(StateEncodeError, match=r"declared|holds|place|no value|not a str"):
            serializer.serialize(state, type(state))


def test_slots_named_like_keywords_and_keys_of_any_text_are_no_obstacle() -> None:
    """The predicates are generated source; names go into it as data."""
    odd = TypedDict("odd", {"'": int, "\0{constants}": int, "\n": str})
    assert form({"'": 1, "\0{constants}": 2, "\n": "3"}, odd) == TYPED
    assert form({"'": 1, "\0{constants}": 2, "\n": 3}, odd) == LOOSE
    slotted = type("Slots", (), {"__slots__": ("class",), "__annotations__": {"class": int}})
    state = slotted()
    setattr(state, "class", 5)
    assert getattr(round_trip(state), "class") == 5


def test_classes_that_are_used_often_or_deep_inside_are_tested_as_well() -> None:
    """The predicate calls a function where it would be too long or too deep in line."""
    nested: Any = Item
    for _ in range(6):
        nested = dict[str, list[nested]]
    cls = dataclasses.make_dataclass("Deep", [("a", nested), ("b", Item), ("c", Item)])

    def wrapped(item: Item) -> Any:
        value: Any = item
        for _ in range(6):
            value = {"k": [value]}
        return cls(value, Item(), Item())

    assert form(wrapped(Item())) == TYPED
    sloppy = wrapped(Item(None))  # type: ignore[arg-type]
    assert form(sloppy) == LOOSE
    assert round_trip(sloppy) == sloppy
    assert form(cls({}, Item(), Item("a", "b"))) == LOOSE  # type: ignore[arg-type]
