"""Payloads: checked and converted by a handler's annotations, or refused by the field's name."""

import contextlib
import copy
import enum
import inspect
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType, NotRequired, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statemgr import StateManagerMemory
from statemgr.errors import EventHandlerError, EventPayloadError
from statemgr.events import Event, EventContext, EventProcessor, RegistrationContext

SECRET = "hunter2"
UserId = NewType("UserId", int)
Positive = Annotated[int, msgspec.Meta(gt=0)]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Item:
    sku: str
    count: int = 1


@dataclass
class Order:
    items: list[Item]
    due: date | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class Tree:
    name: str
    branches: "list[Tree]" = field(default_factory=list)


@attrs.define
class Sized:
    size: int


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Address(pydantic.BaseModel):
    street: str
    number: int = pydantic.Field(default=1, gt=0)


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict):
    fast: bool
    depth: NotRequired[int]


class Handle:
    """Something that no JSON stands for."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass
class Cart:
    """A state."""

    items: list[str] = field(default_factory=list)


def taking(hint: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what makes the arguments of a handler with one parameter, `value`."""

    def handler(value: Any) -> None: ...

    handler.__annotations__["value"] = hint
    return arguments_of(handler)


def arguments_of(handler: Callable[..., Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    registry = RegistrationContext()
    registry.handler(handler, name="call")
    return registry.handlers["call"].payload.arguments


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal, types included."""
    return type(one) is type(other) and repr(one) == repr(other)


class TestConversion:
    @pytest.mark.parametrize(
        ("hint", "given", "expected"),
        [
            (bool, True, True),
            (int, 5, 5),
            (int, 2**70, 2**70),
            (float, 1.5, 1.5),
            (float, 2, 2.0),
            (str, "text", "text"),
            (bytes, "aGk=", b"hi"),
            (None, None, None),
            (Any, {"a": [1]}, {"a": [1]}),
            (object, [1, "a"], [1, "a"]),
            (Color, "red", Color.RED),
            (Level, 2, Level.HIGH),
            (datetime, "2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
            (date, "2026-01-02", date(2026, 1, 2)),
            (time, "03:04:05", time(3, 4, 5)),
            (timedelta, "P1DT2S", timedelta(days=1, seconds=2)),
            (UUID, "00000000-0000-0000-0000-00000000002a", UUID(int=42)),
            (Decimal, "1.50", Decimal("1.50")),
            (list[int], [1, 2], [1, 2]),
            (list, [1, "a"], [1, "a"]),
            (tuple[int, str], [1, "a"], (1, "a")),
            (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
            (set[int], [1, 1], {1}),
            (frozenset[str], ["a"], frozenset("a")),
            (dict[str, Color], {"a": "blue"}, {"a": Color.BLUE}),
            (dict[int, str], {"1": "a"}, {1: "a"}),
            (dict[Color, int], {"red": 1}, {Color.RED: 1}),
            (dict[UUID, int], {str(UUID(int=42)): 1}, {UUID(int=42): 1}),
            (Literal["a", "b"], "b", "b"),
            (int | None, None, None),
            (int | str, "a", "a"),
            (UserId, 5, 5),
            (Annotated[int, "any mark"], 5, 5),
            (Positive, 5, 5),
            (Item, {"sku": "a"}, Item("a", 1)),
            (Item | None, {"sku": "a", "count": 2}, Item("a", 2)),
            (
                Order,
                {"items": [{"sku": "a"}], "due": "2026-01-02", "notes": {"a": "b"}},
                Order([Item("a")], date(2026, 1, 2), {"a": "b"}),
            ),
            (Tree, {"name": "a", "branches": [{"name": "b"}]}, Tree("a", [Tree("b")])),
            (Sized, {"size": 5}, Sized(5)),
            (Point, {"x": 1}, Point(1, 0)),
            (Address, {"street": "s", "number": 2}, Address(street="s", number=2)),
            (list[Address], [{"street": "s"}], [Address(street="s")]),
            (Address | None, {"street": "s"}, Address(street="s")),
            (Pair, [1, "a"], Pair(1, "a")),
            (Options, {"fast": True}, {"fast": True}),
        ],
    )
    def test_what_json_has_becomes_what_is_annotated(
        self, hint: Any, given: Any, expected: Any
    ) -> None:
        assert json.loads(json.dumps(given)) == given
        made = taking(hint)({"value": given})
        assert same(made["value"], expected)

    @pytest.mark.parametrize(
        ("hint", "value"),
        [
            (bytes, b"hi"),
            (Color, Color.RED),
            (datetime, datetime(2026, 1, 2, tzinfo=UTC)),
            (timedelta, timedelta(1)),
            (UUID, UUID(int=1)),
            (Decimal, Decimal(1)),
            (set[int], {1}),
            (tuple[int, ...], (1, 2)),
            (dict[int, str], {1: "a"}),
            (dict[UUID, int], {UUID(int=1): 1}),
            (Item, Item("a")),
            (list[Item], [Item("a")]),
            (Sized, Sized(1)),
            (Point, Point(1)),
            (Address, Address(street="s")),
            (list[Address], [Address(street="s")]),
            (Pair, Pair(1, "a")),
            (Handle | None, None),
        ],
    )
    def test_pythons_own_values_pass(self, hint: Any, value: Any) -> None:
        """Events that handlers chain need not look like JSON."""
        assert same(taking(hint)({"value": value})["value"], value)

    def test_an_object_of_any_class_passes_as_it_is(self) -> None:
        handle = Handle(5)
        assert taking(Handle)({"value": handle})["value"] is handle
        with pytest.raises(EventPayloadError, match="Expected `Handle`"):
            taking(Handle)({"value": {"number": 5}})

    def test_without_an_annotation_anything_passes(self) -> None:
        thing = Handle(1)
        assert arguments_of(lambda value: None)({"value": thing})["value"] is thing


class TestRefusals:
    @pytest.mark.parametrize(
        ("hint", "given", "path", "reason"),
        [
            (bool, 1, "", "Expected `bool`, got `int`"),
            (int, True, "", "Expected `int`, got `bool`"),
            (int, "1", "", "Expected `int`, got `str`"),
            (int, 1.5, "", "Expected `int`, got `float`"),
            (float, "1", "", "Expected `float`, got `str`"),
            (float, True, "", "Expected `float`, got `bool`"),
            (str, 1, "", "Expected `str`, got `int`"),
            (str, None, "", "Expected `str`, got `null`"),
            (bytes, 1, "", "Expected `bytes`, got `int`"),
            (None, 0, "", "Expected `null`"),
            (Positive, 0, "", "Expected `int` >"),
            (Item, [], "", "Expected `object`, got `array`"),
            (Item, {}, ".sku", "is missing"),
            (Item, {"sku": 1}, ".sku", "Expected `str`, got `int`"),
            (list[Item], [{"sku": "a"}, {"sku": 1}], "[1].sku", "Expected `str`, got `int`"),
            (list[Item], [{}], "[0].sku", "is missing"),
            (Order, {"items": [{"sku": "a", "count": ""}]}, ".items[0].count", "Expected `int`"),
            (Order, {"items": [], "notes": {"a": 1}}, ".notes[...]", "Expected `str`, got `int`"),
            (dict[str, list[Item]], {"a": [{"sku": 1}]}, "[...][0].sku", "Expected `str`"),
            (Sized, {"size": "1"}, ".size", "Expected `int`, got `str`"),
            (Point, {"x": None}, ".x", "Expected `int`, got `null`"),
            (tuple[int, str], [1], "", "Expected `array` of length 2, got 1"),
            (set[int], ["a"], "[0]", "Expected `int`, got `str`"),
            (Options, {"fast": 1}, ".fast", "Expected `bool`, got `int`"),
            (int | str, [], "", "Expected `int | str`, got `array`"),
            (Address, {"number": 1}, ".street", ""),
            (Address, {"street": "s", "number": 0}, ".number", ""),
            (list[Address], [{"street": 5}], "[0]", ""),
        ],
    )
    def test_the_error_names_the_field(self, hint: Any, given: Any, path: str, reason: str) -> None:
        with pytest.raises(EventPayloadError) as caught:
            taking(hint)({"value": given})
        assert caught.value.field == "value" + path
        assert str(caught.value).startswith(f"'call': value{path}: {reason}")

    @pytest.mark.parametrize(
        ("hint", "given"),
        [
            (int, SECRET),
            (Color, SECRET),
            (Literal["a"], SECRET),
            (datetime, SECRET),
            (date, SECRET),
            (timedelta, SECRET),
            (UUID, SECRET),
            (Decimal, SECRET),
            (bytes, SECRET),
            (Annotated[str, msgspec.Meta(max_length=2)], SECRET),
            (dict[int, int], {SECRET: 1}),
            (dict[str, int], {SECRET: SECRET}),
            (list[Item], [{"sku": "a", "count": SECRET}]),
            (Item, {SECRET: 1}),
            (Options, {SECRET: SECRET}),
            (Address, {"street": SECRET, "number": -1}),
            (Address, {"street": [SECRET]}),
            (list[Address], [{"street": [SECRET]}]),
            (Level, 31337),
        ],
    )
    def test_no_message_shows_a_value(self, hint: Any, given: Any) -> None:
        """Nor does what the error came from: tracebacks are logged."""
        with pytest.raises(EventPayloadError) as caught:
            taking(hint)({"value": given})
        error = caught.value
        assert SECRET not in f"{error} {error.field} {error.args}"
        assert "31337" not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__

    def test_a_classs_own_check_is_not_quoted(self) -> None:
        @dataclass
        class Even:
            n: int

            def __post_init__(self) -> None:
                if self.n % 2:
                    raise ValueError(f"{self.n} is odd")

        with pytest.raises(
            EventPayloadError, match=r"^'call': value: does not fit its annotation$"
        ):
            taking(Even)({"value": {"n": 31337}})

    def test_what_is_nested_too_deeply(self) -> None:
        tree: dict[str, Any] = {"name": "leaf"}
        for _ in range(100_000):
            tree = {"name": "branch", "branches": [tree]}
        with pytest.raises(EventPayloadError):
            taking(Tree)({"value": tree})

    def test_what_holds_itself(self) -> None:
        tree: dict[str, Any] = {"name": "leaf", "branches": []}
        tree["branches"].append(tree)
        with pytest.raises(EventPayloadError):
            taking(Tree)({"value": tree})


class TestNames:
    def test_one_that_is_missing(self) -> None:
        arguments = arguments_of(lambda a, b, c=3: None)
        with pytest.raises(EventPayloadError, match=r"^'call': b: is missing$") as caught:
            arguments({"a": 1})
        assert caught.value.field == "b"
        assert arguments({"a": 1, "b": 2}) == {"a": 1, "b": 2}

    def test_a_default_is_used_as_it_stands(self) -> None:
        """It is the function's own, and not checked against the annotation."""

        def handler(a: int = "text", *, b: list[int] = ()) -> Any:  # type: ignore[assignment]
            return a, b

        assert arguments_of(handler)({}) == {}
        assert arguments_of(handler)({"b": [1]}) == {"b": [1]}

    def test_one_that_is_unknown(self) -> None:
        with pytest.raises(EventPayloadError, match=r"'call': '?c'?:? is unknown") as caught:
            arguments_of(lambda a, b=2: None)({"a": 1, "c": 3})
        assert caught.value.field == "c"
        assert "'a', 'b'" in str(caught.value)
        with pytest.raises(EventPayloadError, match="takes nothing"):
            arguments_of(lambda: None)({"c": 3})

    def test_an_unknown_name_cannot_forge_a_line_of_a_log_or_fill_it(self) -> None:
        """Names come from clients too."""
        for name in ("a\nERROR forged", "\x1b[2J", "\ud800", "x" * 1_000_000):
            with pytest.raises(EventPayloadError) as caught:
                arguments_of(lambda a=1: None)({name: 3})
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 1000

    def test_nor_can_a_name_by_which_a_handler_takes_what_does_not_fit(self) -> None:
        def handler(**rest: int) -> None: ...

        for name in ("a\nERROR forged", "\x1b[2J", "\ud800", "x" * 1_000_000):
            with pytest.raises(EventPayloadError, match="Expected `int`") as caught:
                arguments_of(handler)({name: "three"})
            assert caught.value.field == name
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("name", [1, None, ("a",), b"a", 1.5])
    def test_a_name_that_is_no_string(self, name: Any) -> None:
        for handler in (lambda a=1: None, lambda **rest: None):
            with pytest.raises(EventPayloadError):
                arguments_of(handler)({name: 3})

    def test_any_name_goes_where_the_handler_takes_all(self) -> None:
        def handler(a: int, **rest: Any) -> Any:
            return a, rest

        arguments = arguments_of(handler)({"a": 1, "b": 2, "c": [3]})
        assert handler(**arguments) == (1, {"b": 2, "c": [3]})
        with pytest.raises(EventPayloadError, match="a: is missing"):
            arguments_of(handler)({"b": 2, "c": 3})

    def test_what_all_others_are_to_be_is_checked(self) -> None:
        def handler(**rest: Item) -> Any: ...

        assert arguments_of(handler)({"b": {"sku": "a"}}) == {"b": Item("a")}
        with pytest.raises(EventPayloadError, match=r"'call': b\.sku: Expected `str`, got `int`"):
            arguments_of(handler)({"b": {"sku": 1}})

    def test_a_payload_cannot_give_a_state_or_the_context(self) -> None:
        def handler(cart: Cart, ctx: EventContext, n: int = 0) -> None: ...

        def greedy(cart: Cart, ctx: EventContext, **rest: Any) -> None: ...

        for fn in (handler, greedy):
            for name, what in (("cart", "a state"), ("ctx", "the context")):
                for value in ({"items": ["free"]}, Cart(), None):
                    with pytest.raises(EventPayloadError, match=f"{name}.?: is {what}") as caught:
                        arguments_of(fn)({name: value})
                    assert caught.value.field == name
        assert arguments_of(handler)({"n": 1}) == {"n": 1}

    async def test_a_context_that_may_be_missing_is_given_all_the_same(self) -> None:
        """So that the function can be called without one elsewhere."""
        registry = RegistrationContext()

        @registry.handler
        def call(ctx: EventContext | None = None) -> bool:
            return ctx is EventContext.get()

        async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
            assert await (await processor.enqueue("u", Event("call"))) is True
            with pytest.raises(EventPayloadError, match="is the context"):
                await (await processor.enqueue("u", Event("call", {"ctx": None})))


@dataclass
class Room:
    messages: list[Any] = field(default_factory=list)


class TestWhoseObjectsTheyAre:
    """Containers are the handler's own, whatever the annotation; instances are the payload's."""

    @pytest.mark.parametrize(
        ("hint", "given", "change"),
        [
            (list, [1], lambda v: v.append(2)),
            (list[int], [1], lambda v: v.append(2)),
            (list[Any], [1], lambda v: v.append(2)),
            (dict[str, list[int]], {"a": [1]}, lambda v: v["a"].append(2)),
            (dict[str, Any], {"a": 1}, lambda v: v.clear()),
            (set[int], {1}, lambda v: v.add(2)),
            (Order, {"items": [{"sku": "a"}]}, lambda v: v.items.clear()),
            (Options, {"fast": True}, lambda v: v.clear()),
            (Address, {"street": "s"}, lambda v: setattr(v, "street", "t")),
            (list[Item], [Item("a")], lambda v: v.clear()),
            (Any, [1], lambda v: v.append(2)),
            (Any, {"a": ([1],)}, lambda v: v["a"][0].append(2)),
            (object, {1}, lambda v: v.add(2)),
            (Any, bytearray(b"a"), lambda v: v.append(2)),
            (dict, {"a": {"b": 1}}, lambda v: v["a"].clear()),
            (dict[str, list[Any]], {"a": [[1]]}, lambda v: v["a"][0].append(2)),
            (inspect.Parameter.empty, [[1]], lambda v: v[0].append(2)),
        ],
    )
    def test_containers_are_new(self, hint: Any, given: Any, change: Callable[[Any], None]) -> None:
        before = repr(given)
        made = taking(hint)({"value": given})["value"]
        change(made)
        assert repr(made) != before
        assert repr(given) == before

    @pytest.mark.parametrize(
        ("hint", "given"),
        [
            (Any, Item("a")),
            (object, Handle(1)),
            (Item, Item("a")),
            (Point, Point(1)),
            (Address, Address(street="s")),
            (Handle, Handle(1)),
        ],
    )
    def test_what_needs_no_conversion_is_the_payloads_own_object(
        self, hint: Any, given: Any
    ) -> None:
        assert taking(hint)({"value": given})["value"] is given

    async def test_an_event_can_be_sent_twice(self) -> None:
        registry = RegistrationContext()

        @registry.handler
        def take(order: Order, counts: list[int]) -> int:
            order.items.clear()
            counts.append(1)
            return len(counts)

        event = Event("take", {"order": {"items": [{"sku": "a"}]}, "counts": [1]})
        before = repr(event.payload)
        async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
            for _ in range(2):
                assert await (await processor.enqueue("u", event)) == 2
        assert repr(event.payload) == before

    @pytest.mark.parametrize("rollback", [True, False])
    async def test_states_of_two_idents_share_nothing_of_one_event(self, rollback: bool) -> None:
        registry = RegistrationContext()

        @registry.handler
        def say(room: Room, message: Any) -> None:
            room.messages.append(message)

        @registry.handler
        def like(room: Room) -> None:
            room.messages[-1]["likes"] += 1

        event = Event("say", {"message": {"likes": 0}})
        async with (
            StateManagerMemory(rollback=rollback) as manager,
            EventProcessor(manager, registry) as processor,
        ):
            for _ in range(2):  # the second time on the objects that the first has left
                for ident in ("a", "b"):
                    await (await processor.enqueue(ident, event))
            await (await processor.enqueue("a", Event("like")))
            await (await processor.enqueue("b", Event("like")))
            for ident in ("a", "b"):
                room = await manager.get_state(registry.token(ident, Room))
                assert room.messages == [{"likes": 0}, {"likes": 1}]
        assert event.payload == {"message": {"likes": 0}}

    async def test_changing_a_payload_after_it_was_enqueued_changes_nothing(self) -> None:
        registry = RegistrationContext()
        registry.handler(lambda n, counts: (n, counts), name="free")

        def typed(n: int, counts: list[int]) -> Any:
            return n, counts

        registry.handler(typed)
        payload: dict[str, Any] = {"n": 1, "counts": [1]}
        async with StateManagerMemory() as manager, EventProcessor(manager, registry) as processor:
            futures = [processor.enqueue_nowait("u", Event(n, payload)) for n in ("typed", "free")]
            payload["n"] = 2
            payload["counts"].append(2)
            assert [await future for future in futures] == [(1, [1])] * 2


class TestEvents:
    @pytest.mark.parametrize("name", [5, None, b"add"])
    def test_a_name_is_a_string(self, name: Any) -> None:
        with pytest.raises(EventHandlerError, match="an event's name is a string, not"):
            Event(name)

    @pytest.mark.parametrize("payload", [5, None, [("a", 1)], "text"])
    def test_a_payload_is_a_mapping(self, payload: Any) -> None:
        """What else a client has sent is an error like all of its payload, and not shown."""
        with pytest.raises(EventPayloadError) as caught:
            Event("add", payload)
        assert caught.value.field == ""
        kind = type(payload).__name__
        assert str(caught.value) == f"'add': a payload is a mapping, not {kind}"

    def test_without_a_payload_it_has_an_empty_one_of_its_own(self) -> None:
        """Which can be pickled, copied and encoded, as a payload that is given."""
        event, other = Event("add"), Event("add")
        assert type(event.payload) is dict
        assert event.payload is not other.payload
        assert pickle.loads(pickle.dumps(event)) == copy.deepcopy(event) == event  # noqa: S301  # made here
        assert msgspec.json.encode(event.payload) == b"{}"

    def test_equal_events(self) -> None:
        assert Event("add", {"n": 1}) == Event("add", {"n": 1})
        assert Event("add", {"n": 1}) != Event("add", {"n": 2})
        assert Event("add") != Event("sub")
        assert Event("add") == Event("add", {})
        assert Event("add") != "add"
        with pytest.raises(TypeError, match="unhashable"):
            hash(Event("add"))

    def test_its_repr_shows_no_value(self) -> None:
        assert repr(Event("add", {"n": SECRET, "m": 2})) == "Event('add', {'n', 'm'})"

    def test_names_of_a_client_cannot_fill_a_log_by_its_repr_or_forge_a_line_of_it(self) -> None:
        for event in (
            Event("add", {f"{n}\nERROR forged": n for n in range(10_000)}),
            Event("add\nERROR forged" * 10_000),
        ):
            assert len(repr(event)) < 1000
            assert repr(event).isprintable()


HINTS: list[Any] = [
    *(bool, int, float, str, bytes, None, Any, Color, Level, datetime, date, timedelta, UUID),
    *(Decimal, list, dict, set, list[int], dict[str, int], dict[int, str], tuple[int, str]),
    *(frozenset[str], Literal["a", 1], int | None, str | list[int] | None, UserId, Positive),
    *(Item, Order, Tree, Sized, Point, Address, Pair, Options, list[Item], dict[Color, Item]),
    *(Handle, list[Address], Address | None, Annotated[str, msgspec.Meta(pattern="^a")]),
]
NAMES = ["value", "other", "rest", "sku", "items", "name", "branches", "street", "x", "size"]
texts = st.sampled_from([*NAMES, "red", "2026-01-02", "", "\ud800", "1", "aGk="]) | st.text()
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


class TestAnyPayload:
    @given(st.sampled_from(HINTS), st.booleans(), st.dictionaries(texts, json_like, max_size=4))
    def test_it_ends_in_arguments_or_in_a_payload_error(
        self, hint: Any, takes_all: bool, payload: dict[str, Any]
    ) -> None:
        """And the arguments are such that the handler can be called with them."""

        def handler(value: Any, other: Any = None) -> None: ...

        def greedy(value: Any, other: Any = None, **rest: Any) -> None: ...

        fn = greedy if takes_all else handler
        fn.__annotations__["value"] = fn.__annotations__["other"] = hint
        with contextlib.suppress(EventPayloadError):
            arguments = arguments_of(fn)(payload)
            inspect.signature(fn).bind(**arguments)
            assert arguments.keys() == payload.keys()

    @given(st.sampled_from(HINTS), json_like)
    def test_what_was_converted_is_converted_to_itself(self, hint: Any, value: Any) -> None:
        arguments = taking(hint)
        try:
            once = arguments({"value": value})
        except EventPayloadError:
            return
        assert same(arguments(once), once)
