"""`Fields`: which fields of a state have changed between two moments, for each serialization."""

import enum
import pickle
from collections import UserDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from statemgr import PickleSerializer, StateToken
from statemgr.errors import StateEncodeError
from statemgr.serialization.fields import REMOVED, WHOLE, CodecFields, CopiedFields, Fields


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    sku: str = ""
    count: int = 0


@dataclass
class Cart:
    count: int = 0
    ratio: float = 0.0
    tags: set[str] = field(default_factory=set)
    items: list[Item] = field(default_factory=list)
    prices: dict[str, Decimal] = field(default_factory=dict)
    color: Color = Color.RED
    when: datetime | None = None


@dataclass
class Loose:
    one: Any = None
    other: Any = None
    _own: Any = None

    __state_classes__ = (Item,)


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    __state_classes__ = (Item,)


@attrs.define
class Sized:
    size: int = 0
    name: str = ""


class Struct(msgspec.Struct):
    x: int = 0
    y: list[int] = msgspec.field(default_factory=list)


class Model(pydantic.BaseModel):
    street: str = ""
    number: int = 0


class Options(TypedDict, total=False):
    fast: bool
    depth: int


class Pair(NamedTuple):
    left: int = 0
    right: str = ""


class Pickled(StateToken[Any]):
    serializer = PickleSerializer(key=b"k" * 32)


class Spelled(StateToken[Any]):
    def serialize(self, state: Cart) -> bytes:
        return str(state.count).encode()

    def deserialize(self, data: bytes | None = None, fp: Any = None) -> Cart:
        return Cart(int(data or fp.read()))


def fields_of(cls: type, kind: type[StateToken[Any]] = StateToken) -> Fields:
    return kind("u", cls).fields()


def changes(before: Any, after: Any, kind: type[StateToken[Any]] = StateToken) -> dict[str, Any]:
    fields = fields_of(type(before), kind)
    return fields.changes(fields.image(before), fields.image(after))


class TestWhichFieldsHaveChanged:
    @pytest.mark.parametrize(
        ("before", "after", "expected"),
        [
            (Cart(), Cart(), {}),
            (Cart(), Cart(count=1), {"count": 1}),
            (Cart(), Cart(ratio=-0.0), {"ratio": -0.0}),
            (Cart(items=[Item("a")]), Cart(items=[Item("a", 1)]), {"items": [Item("a", 1)]}),
            (Cart(tags={"a"}), Cart(tags={"b"}), {"tags": {"b"}}),
            (Cart(), Cart(color=Color.BLUE, count=2), {"count": 2, "color": Color.BLUE}),
            (Cart(prices={"a": Decimal(1)}), Cart(), {"prices": {}}),
            (Loose(one=1), Loose(one=True), {"one": True}),
            (Loose(one=[1]), Loose(one=[True]), {"one": [True]}),
            (Loose(one=(1,)), Loose(one=[1]), {"one": [1]}),
            (Loose(one=1), Loose(one=1.0), {"one": 1.0}),
            (Loose(one=Item("a")), Loose(one=Item("b")), {"one": Item("b")}),
            (Loose(one={"a": 1, "b": 2}), Loose(one={"b": 2, "a": 1}), {"one": {"b": 2, "a": 1}}),
            (Plain(a=1), Plain(a=1, b=2), {"b": 2}),
            (Plain(a=1, b=2), Plain(b=2), {"a": REMOVED}),
            (Plain(a=1), Plain(b=1), {"b": 1, "a": REMOVED}),
            (Sized(), Sized(size=1), {"size": 1}),
            (Struct(), Struct(y=[1]), {"y": [1]}),
            (Model(), Model(street="s"), {"street": "s"}),
            ({"a": 1}, {"a": 2, "b": [1]}, {"a": 2, "b": [1]}),
            ({"a": 1}, {}, {"a": REMOVED}),
            ({"a": 1}, {1: 1}, {"": {1: 1}, "a": REMOVED}),
            ([1], [1, 2], {"": [1, 2]}),
            (set(), {1}, {"": {1}}),
            (5, 6, {"": 6}),
            ("a", "b", {"": "b"}),
        ],
    )
    def test_only_they_are_told(self, before: Any, after: Any, expected: dict[str, Any]) -> None:
        told = changes(before, after)
        assert told == expected
        assert repr(told) == repr(expected)  # in which True is not 1
        assert changes(after, after) == changes(before, before) == {}

    def test_a_field_that_is_nan_has_not_changed(self) -> None:
        nan = float("nan")
        assert changes(Cart(ratio=nan), Cart(ratio=nan, count=1)) == {"count": 1}
        assert changes(Loose(one=[nan]), Loose(one=[nan], other=1)) == {"other": 1}

    @pytest.mark.parametrize("one", [None, object])
    def test_names_with_an_underscore_stay_here(self, one: Any) -> None:
        """Those of the state itself."""
        assert changes(Loose(_own=1), Loose(_own=2)) == {}
        assert changes(Loose(_own=1), Loose(one=1, _own=2)) == {"one": 1}
        assert changes({"_a": 1}, {"b": 1}) == {"b": 1}
        assert changes(Plain(_a=1, b=1), Plain()) == {"b": REMOVED}
        fields = fields_of(Loose)
        assert fields.values(fields.image(Loose(_own=1))) == {"one": None, "other": None}

    def test_between_the_two_forms_of_an_image(self) -> None:
        """A state is typed MessagePack as long as its values are as annotated, and fit."""
        fields = fields_of(Cart)
        zone = timezone(timedelta(hours=1))
        for other in (Cart(count=2**70), Cart(when=datetime(2026, 1, 2, tzinfo=zone))):
            here, there = fields.image(Cart(tags={"a"})), fields.image(other)
            assert type(here) is bytes
            assert type(there) is dict
            name = "count" if other.count else "when"
            assert fields.changes(here, there) == {name: getattr(other, name), "tags": set()}
            assert fields.changes(there, here) == {
                name: getattr(Cart(), name),
                "tags": {"a"},
            }
            assert fields.values(there) == vars(other)

    def test_a_value_outside_of_its_annotations_bounds_is_told(self) -> None:
        @dataclass
        class Bounded:
            n: Annotated[int, msgspec.Meta(ge=0)] = 0

        assert changes(Bounded(0), Bounded(-1)) == {"n": -1}

    def test_a_value_of_another_type_than_annotated_is_told_as_it_is(self) -> None:
        wrong: Any = "text"
        assert changes(Cart(), Cart(count=wrong)) == {"count": "text"}
        assert changes(Cart(count=wrong), Cart(count=3)) == {"count": 3}

    def test_a_typed_dict_is_told_by_its_keys(self) -> None:
        fields = fields_of(Options)
        assert fields.changes(fields.image({"fast": True}), fields.image({"depth": 1})) == {
            "fast": REMOVED,
            "depth": 1,
        }

    def test_a_named_tuple_is_told_by_its_fields(self) -> None:
        assert changes(Pair(1, "a"), Pair(2, "a")) == {"left": 2}

    @pytest.mark.parametrize("kind", [StateToken, Pickled])
    def test_a_value_without_parts_is_told_whole(self, kind: Any) -> None:
        """Also one whose class is written in Python, and has attributes."""
        fields = fields_of(UUID, kind)
        before, after = fields.image(UUID(int=1)), fields.image(UUID(int=2))
        assert fields.values(after) == {WHOLE: UUID(int=2)}
        assert fields.changes(before, after) == {WHOLE: UUID(int=2)}


class TestImages:
    STATES = (
        Cart(count=1, tags={"a"}, items=[Item("a")], when=datetime(2026, 1, 2, tzinfo=UTC)),
        Loose(one={"a": [Item("a")]}, other=(1, {2})),
        Plain(a=[1], b={"c": 2}),
        {"a": [1]},
        [1, [2]],
        Struct(1, [2]),
    )

    @pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
    @pytest.mark.parametrize("kind", [StateToken, Pickled])
    def test_an_image_stays_what_it_is_when_the_state_changes(self, state: Any, kind: Any) -> None:
        fields = fields_of(type(state), kind)
        token = kind("u", type(state))
        copy = token.deserialize(token.serialize(state))
        image = fields.image(copy)
        before = repr(fields.values(image))
        for value in vars(copy).values() if hasattr(copy, "__dict__") else [copy]:
            if isinstance(value, (list, dict, set)):
                value.clear()
        assert repr(fields.values(image)) == before

    @pytest.mark.parametrize("state", STATES, ids=lambda state: type(state).__name__)
    @pytest.mark.parametrize("kind", [StateToken, Pickled])
    def test_what_comes_out_is_shared_with_nothing(self, state: Any, kind: Any) -> None:
        fields = fields_of(type(state), kind)
        image = fields.image(state)
        before = repr(fields.values(image))
        for _ in range(2):
            for value in fields.values(image).values():
                if isinstance(value, (list, dict, set)):
                    value.clear()
        assert repr(fields.values(image)) == before
        assert repr(fields.values(fields.image(state))) == before

    def test_a_state_that_cannot_be_saved_has_none(self) -> None:
        """And the error is that of saving it, with the path."""
        for state, path in (
            (Loose(one=[object()]), r"Loose\.one\[0\]"),
            (Plain(a=object()), r"Plain\.a"),
            ({"a": object()}, r"dict\[#0\]"),
            ([object()], r"list\[0\]"),
        ):
            with pytest.raises(StateEncodeError, match=path) as caught:
                fields_of(type(state)).image(state)
            with pytest.raises(StateEncodeError) as saving:
                StateToken("u", type(state)).serialize(state)
            assert str(caught.value) == str(saving.value)

    def test_nor_has_one_that_refers_to_itself(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        with pytest.raises(StateEncodeError, match="refers to itself"):
            fields_of(Loose).image(Loose(one=loop))


class TestKinds:
    def test_which_fields_a_token_has(self) -> None:
        assert type(fields_of(Cart)) is CodecFields
        assert type(fields_of(Cart, Pickled)) is CopiedFields
        assert type(fields_of(Cart, Spelled)) is CopiedFields

    def test_a_serialization_of_ones_own_tells_what_it_saves(self) -> None:
        """What it leaves out is no part of the state."""
        assert changes(Cart(count=1), Cart(count=2, tags={"a"}), Spelled) == {"count": 2}
        assert changes(Cart(count=1), Cart(count=1, tags={"a"}), Spelled) == {}


class Unequal:
    """A class without an `__eq__`."""

    def __init__(self, value: Any) -> None:
        self.value = value


class TestPickledStates:
    def told(self, before: Any, after: Any) -> dict[str, Any]:
        return changes(before, after, Pickled)

    def test_only_fields_that_have_changed(self) -> None:
        nan = float("nan")
        for same in (1, [Item("a")], {"a": {1}}, nan, [nan], Unequal([1]), UserDict({"a": 1})):
            assert self.told(Loose(one=same), Loose(one=same, other=1)) == {"other": 1}

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (1, True),
            ([1], [True]),
            ((1,), [1]),
            ({"a": 1}, {"a": 1.0}),
            ({1: "a"}, {True: "a"}),
            ({1}, {True}),
            (0.0, -0.0),
            ([0.0], [-0.0]),
            ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
            (Item("a", 1), Item("a", True)),
        ],
        ids=repr,
    )
    def test_types_and_order_count_at_any_depth(self, before: Any, after: Any) -> None:
        assert repr(self.told(Loose(one=before), Loose(one=after))) == repr({"one": after})

    def test_a_value_that_refers_to_itself(self) -> None:
        """It is told, changed or not: there is no end to comparing it."""
        loop: list[Any] = []
        loop.append(loop)
        assert self.told(Loose(one=loop), Loose(one=loop, other=1)).keys() >= {"other"}

    def test_an_attribute_that_is_not_declared(self) -> None:
        """Pickle keeps it, so the client is told."""
        before, after = Cart(), Cart()
        vars(after)["extra"] = 5
        assert self.told(before, after) == {"extra": 5}
        assert self.told(after, before) == {"extra": REMOVED}

    def test_underscores_stay_here(self) -> None:
        assert self.told(Loose(_own=1), Loose(_own=2)) == {}


class TestRemoved:
    def test_it_is_one_object_that_no_encoder_takes_for_a_value(self) -> None:
        with pytest.raises(TypeError):
            msgspec.json.encode({"a": REMOVED})
        assert repr(REMOVED) == "REMOVED"
        assert pickle.loads(pickle.dumps(REMOVED)) is REMOVED  # noqa: S301  # made in this line
