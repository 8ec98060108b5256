"""Deltas: a client that applies them has what is stored, and is told no more than what changed."""

import asyncio
import copy
import enum
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemgr import PickleSerializer, StateManagerMemory, StateToken
from statemgr.errors import CommitUncertainError, EventHandlerError, StateEncodeError
from statemgr.events import REMOVED, Delta, Event, EventContext, EventProcessor, RegistrationContext


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    sku: str = ""
    count: int = 0


@dataclass
class Typed:
    """Every field is typed down to its leaves: the way of typed MessagePack."""

    count: int = 0
    ratio: float = 0.0
    title: str = ""
    tags: set[int] = field(default_factory=set)
    items: list[Item] = field(default_factory=list)
    prices: dict[str, int] = field(default_factory=dict)
    best: Item | None = None
    color: Color = Color.RED
    when: datetime | None = None


@dataclass
class Loose:
    """Fields that may hold anything: the way of tagged MessagePack."""

    one: Any = None
    other: list = field(default_factory=list)  # type: ignore[type-arg]
    table: dict = field(default_factory=dict)  # type: ignore[type-arg]
    _own: Any = None

    __state_classes__ = (Item,)


class Plain:
    """A class without a list of fields; they come and go."""

    def __init__(self) -> None:
        self.count = 0
        self._own = None

    __state_classes__ = (Item,)


@attrs.define
class Attrs:
    count: int = 0
    tags: set[int] = attrs.field(factory=set)
    best: Item | None = None
    one: Any = None


class Struct(msgspec.Struct):
    count: int = 0
    tags: set[int] = msgspec.field(default_factory=set)
    items: list[Item] = msgspec.field(default_factory=list)
    best: Item | None = None


class Model(pydantic.BaseModel):
    count: int = 0
    tags: set[int] = pydantic.Field(default_factory=set)
    items: list[Item] = pydantic.Field(default_factory=list)
    one: Any = None

    __state_classes__ = (Item,)


@dataclass
class Pickled:
    count: int = 0
    one: Any = None
    items: list[Item] = field(default_factory=list)
    _own: Any = None


class PickledToken(StateToken[Pickled]):
    serializer = PickleSerializer(key=b"k" * 32)


@dataclass
class Spelled:
    """Saved in a way of the application's own."""

    words: list[str] = field(default_factory=list)
    count: int = 0


class SpelledToken(StateToken[Spelled]):
    def serialize(self, state: Spelled) -> bytes:
        return msgspec.json.encode([state.words, state.count])

    def deserialize(self, data: bytes | None = None, fp: Any = None) -> Spelled:
        return Spelled(*msgspec.json.decode(fp.read() if data is None else data))


# What the values are, by a comparison of this test's own.


def public_fields(state: Any) -> dict[str, Any]:
    """Return what a client is to know of a state."""
    if isinstance(state, list):
        return {"": state}
    fields = state if isinstance(state, dict) else attributes(state)
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def attributes(thing: Any) -> dict[str, Any]:
    if isinstance(thing, msgspec.Struct):
        return msgspec.structs.asdict(thing)
    return attrs.asdict(thing, recurse=False) if attrs.has(type(thing)) else vars(thing)


def exactly(value: Any) -> Any:
    """Return what is equal only for equal values of the same types, the order of sets aside."""
    kind = type(value)
    if kind in (list, tuple):
        return kind.__name__, [exactly(part) for part in value]
    if kind is dict:
        return "dict", [(exactly(key), exactly(part)) for key, part in value.items()]
    if kind in (set, frozenset):
        return kind.__name__, sorted(repr(exactly(part)) for part in value)
    if kind in (Item, Typed, Loose, Plain, Attrs, Struct, Model, Pickled, Spelled):
        return kind.__name__, exactly(dict(attributes(value)))
    return kind.__name__, repr(value)


def holds_a_set(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return isinstance(value, (set, frozenset)) or (
        isinstance(value, (list, tuple, dict)) and any(map(holds_a_set, parts))
    )


def wreck(value: Any) -> None:
    """Change everything in place that can be."""
    if isinstance(value, (list, tuple)):
        for part in value:
            wreck(part)
    if isinstance(value, (list, set, dict)):
        value.clear()
    if isinstance(value, Item):
        value.sku = "wrecked"


class Client:
    """Applies deltas, and complains of those that hold more than what changed."""

    def __init__(self, *, wrecks: bool) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self.deltas: list[tuple[Delta, Any]] = []
        self._wrecks = wrecks

    def start(self, snapshot: Delta) -> None:
        self.states |= {name: copy.deepcopy(dict(fields)) for name, fields in snapshot.items()}
        wreck([dict(fields) for fields in snapshot.values()])

    def apply(self, ident: str, delta: Delta) -> None:
        assert delta
        for name, changes in delta.items():
            assert changes
            state = self.states[name]
            for changed, value in changes.items():
                assert not changed.startswith("_")
                if value is REMOVED:
                    del state[changed]
                else:
                    known = changed in state and exactly(state[changed]) == exactly(value)
                    # Equal sets have their members in any order, and their bytes differ then.
                    assert not known or holds_a_set(value)
                    state[changed] = copy.deepcopy(value)
        if self._wrecks:
            for changes in delta.values():
                wreck(list(changes.values()))
        self.deltas.append((delta, self._told(delta)))

    def knows(self, name: str, state: Any) -> None:
        """Check that this is the state that the client has."""
        assert exactly(sorted_by_name(self.states[name])) == exactly(
            sorted_by_name(public_fields(state))
        )

    def check_that_no_delta_has_changed_since(self) -> None:
        for delta, then in self.deltas:
            assert self._told(delta) == then

    def _told(self, delta: Delta) -> Any:
        return exactly({name: dict(changes) for name, changes in delta.items()})


def sorted_by_name(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in sorted(fields)}


# What happens to states.

integers = st.integers(0, 20) | st.sampled_from([-1, 2**70])
floats = st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")])
words = st.sampled_from(["", "a", "b", "_c", "\ud800"])
items = st.builds(Item, words, integers)
times = st.none() | st.just(datetime(2026, 1, 2, tzinfo=UTC))
scalars = st.none() | st.booleans() | integers | floats | words | st.sampled_from(Color) | times
anything = st.recursive(
    scalars | items,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(words, inner, max_size=3)
        | st.tuples(inner)
        | st.sets(integers)
    ),
    max_leaves=5,
)
simple_sets = st.sets(st.integers(0, 20), max_size=4)
FIELDS: dict[type, dict[str, st.SearchStrategy[Any]]] = {
    Typed: {
        "count": integers,
        "ratio": floats,
        "title": words,
        "tags": simple_sets,
        "items": st.lists(items, max_size=3),
        "prices": st.dictionaries(words, integers, max_size=3),
        "best": st.none() | items,
        "color": st.sampled_from(Color),
        "when": times,
    },
    Loose: {"one": anything, "other": st.lists(anything), "table": st.just({}), "_own": anything},
    Plain: {"count": anything, "new": anything, "_own": anything},
    Attrs: {"count": integers, "tags": simple_sets, "best": items, "one": scalars},
    Struct: {"count": integers, "tags": simple_sets, "items": st.lists(items), "best": items},
    Model: {"count": integers, "tags": simple_sets, "items": st.lists(items), "one": anything},
    Pickled: {"count": integers, "one": anything, "items": st.lists(items), "_own": anything},
    Spelled: {"words": st.lists(st.sampled_from("ab")), "count": st.integers(0, 3)},
    dict: {"a": anything, "b": anything, "": anything, "_own": anything},
    list: {"": st.lists(anything, max_size=3)},
}
KINDS = [(cls, cls in (Plain, dict)) for cls in FIELDS]


class Step(NamedTuple):
    """One change of one field."""

    what: str
    name: str
    value: Any


class Plan(NamedTuple):
    """What one event does: parts of steps, with a `yield` after each, and an end."""

    parts: list[list[Step]]
    end: str
    background: bool


def plans(cls: type, *, fields_go: bool) -> st.SearchStrategy[list[Plan]]:
    fields = FIELDS[cls]
    names = st.sampled_from(list(fields))
    steps = names.flatmap(lambda name: st.builds(Step, st.just("set"), st.just(name), fields[name]))
    steps |= st.builds(
        Step, st.sampled_from(["grow", "shrink", "again", "detour"]), names, st.integers(0, 20)
    )
    if fields_go:
        steps |= st.builds(Step, st.just("drop"), names, st.none())
    ends = st.sampled_from(["saved", "saved", "failed", "cancelled", "cannot be saved"])
    parts = st.lists(st.lists(steps, max_size=4), min_size=1, max_size=3)
    return st.lists(st.builds(Plan, parts, ends, st.booleans()), max_size=5)


def take(state: Any, step: Step) -> None:
    """Change a state, mostly in place."""
    if isinstance(state, list):
        value: Any = state
    elif isinstance(state, dict):
        value = state.get(step.name)
    else:
        value = getattr(state, step.name, None)
    if step.what == "set":
        assign(state, step.name, copy.deepcopy(step.value))
    elif step.what == "drop" and value is not None:
        drop(state, step.name)
    elif step.what == "grow":
        grow(value, step.value)
    elif step.what == "shrink" and isinstance(value, (list, set)) and value:
        value.pop()
    elif step.what == "again" and isinstance(value, set) and value:
        member = next(iter(value))
        value.remove(member)
        value.add(member)
    elif step.what == "detour":  # somewhere else and back
        before = copy.deepcopy(value)
        grow(value, step.value)
        if before is not None:
            assign(state, step.name, before)


def grow(value: Any, by: int) -> None:
    if isinstance(value, list):
        value.append(by)
    elif isinstance(value, set):
        value.add(by)
    elif isinstance(value, dict):
        value[str(by)] = by
    elif isinstance(value, Item):
        value.count = by


def assign(state: Any, name: str, value: Any) -> None:
    if isinstance(state, list):
        state[:] = value
    elif isinstance(state, dict):
        state[name] = value
    else:
        setattr(state, name, value)


def drop(state: Any, name: str) -> None:
    if isinstance(state, dict):
        del state[name]
    else:
        delattr(state, name)


class TroubleError(Exception):
    """What handlers fail with here."""


# A plan may set a field to what its class cannot be saved with, before its end.
EXPECTED: dict[str, Any] = {
    "saved": StateEncodeError,
    "failed": (TroubleError, StateEncodeError),
    "cancelled": StateEncodeError,
    "cannot be saved": (StateEncodeError, TypeError),  # of a serialization of one's own
}


async def follow(cls: type, plans: list[Plan], *, wrecks: bool, snapshot: bool) -> None:
    """Run plans on one state, and compare after each of them what client and store have."""
    registry = RegistrationContext()
    kinds = {Pickled: PickledToken, Spelled: SpelledToken}
    registry.state(cls, name="state", kind=kinds.get(cls, StateToken))
    client = Client(wrecks=wrecks)
    waits = asyncio.Event()

    async def end(state: Any, how: str) -> None:
        if how == "failed":
            raise TroubleError
        if how == "cancelled":
            waits.set()
            await asyncio.get_running_loop().create_future()
        if how == "cannot be saved":
            assign(state, next(iter(FIELDS[cls])), [object])

    @registry.handler
    async def handle(state: Any, plan: Any) -> AsyncIterator[None]:
        for part in plan.parts:
            for step in part:
                take(state, step)
            yield
            client.knows("state", state)
        for step in plan.parts[0]:
            take(state, step)
        await end(state, plan.end)

    del registry._handlers["handle"]  # once more, with the class of this run
    handle.__annotations__["state"] = cls
    registry.handler(handle)

    @registry.handler(background=True)
    async def modify(ctx: EventContext, plan: Any) -> None:
        for part in plan.parts:
            async with ctx.modify(cls) as state:
                for step in part:
                    take(state, step)
            client.knows("state", await ctx.manager.get_state(ctx.token(cls)))
        async with ctx.modify(cls) as state:
            for step in plan.parts[0]:
                take(state, step)
            await end(state, plan.end)

    async with (
        StateManagerMemory() as manager,
        EventProcessor(
            manager, registry, emit_delta=client.apply, exception_handler=lambda error: None
        ) as processor,
    ):
        token = registry.token("u", cls)
        client.states["state"] = copy.deepcopy(public_fields(token.create()))
        for number, plan in enumerate(plans):
            if snapshot and number == 1:
                client.start(await processor.snapshot("u", cls))
            waits.clear()
            name = "modify" if plan.background else "handle"
            future = processor.enqueue_nowait("u", Event(name, {"plan": plan}))
            if plan.end == "cancelled":
                watch = asyncio.ensure_future(waits.wait())
                await asyncio.wait((watch, future), return_when=asyncio.FIRST_COMPLETED)
                watch.cancel()
                future.cancel()
            await asyncio.wait((future,))
            error = None if future.cancelled() else future.exception()
            if error is not None and not isinstance(error, EXPECTED[plan.end]):
                raise error
            if plan.end == "saved" and error is None:
                assert future.committed
            client.knows("state", await manager.get_state(token))
        if not wrecks:
            client.check_that_no_delta_has_changed_since()


class TestAClient:
    @pytest.mark.parametrize(("cls", "fields_go"), KINDS, ids=[cls.__name__ for cls, _ in KINDS])
    def test_it_has_what_is_stored_after_every_event(self, cls: type, fields_go: bool) -> None:
        """Types included; after failures and cancels too; told of nothing that did not change."""

        @settings(max_examples=30, deadline=None)
        @given(plans(cls, fields_go=fields_go), st.booleans(), st.booleans())
        def check(plans: list[Plan], wrecks: bool, snapshot: bool) -> None:
            asyncio.run(follow(cls, plans, wrecks=wrecks, snapshot=snapshot))

        check()


@dataclass
class Cart:
    items: dict[str, int] = field(default_factory=dict)
    count: int = 0
    _own: int = 0


@dataclass
class Profile:
    name: str = ""


class Screen:
    """A processor's clients, which keep what they are told."""

    def __init__(self) -> None:
        self.deltas: list[tuple[str, Delta]] = []

    def emit(self, ident: str, delta: Delta) -> None:
        self.deltas.append((ident, delta))


@pytest.fixture
def registry() -> RegistrationContext:
    return RegistrationContext()


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
async def processor(registry: RegistrationContext, screen: Screen) -> AsyncIterator[EventProcessor]:
    async with (
        StateManagerMemory() as manager,
        EventProcessor(
            manager, registry, emit_delta=screen.emit, exception_handler=lambda error: None
        ) as processor,
    ):
        yield processor


class TestWhatIsTold:
    async def test_two_states_of_one_handler_are_told_in_one_delta(
        self, registry: RegistrationContext, processor: EventProcessor, screen: Screen
    ) -> None:
        @registry.handler
        def change(cart: Cart, profile: Profile, both: bool) -> None:
            cart.count += 1
            if both:
                profile.name = "x"

        for both in (True, False):
            await processor.enqueue_nowait("u", Event("change", {"both": both}))
        assert screen.deltas == [
            ("u", {"Cart": {"count": 1}, "Profile": {"name": "x"}}),
            ("u", {"Cart": {"count": 2}}),
        ]

    async def test_nothing_is_told_where_nothing_has_changed(
        self, registry: RegistrationContext, processor: EventProcessor, screen: Screen
    ) -> None:
        @registry.handler
        def look(cart: Cart) -> Iterator[None]:
            cart.count += 1
            cart.count -= 1
            cart._own += 1
            yield
            cart.items = {}

        await processor.enqueue_nowait("u", Event("look"))
        assert screen.deltas == []
        assert (await processor.manager.get_state(StateToken("u", Cart)))._own == 1

    async def test_what_was_told_of_a_handler_that_fails_is_taken_back(
        self, registry: RegistrationContext, processor: EventProcessor, screen: Screen
    ) -> None:
        @registry.handler
        def fail(cart: Cart) -> Iterator[None]:
            cart.count = 1
            yield
            cart.items["tea"] = 1
            yield
            cart.count = 0
            raise TroubleError

        with pytest.raises(TroubleError):
            await processor.enqueue_nowait("u", Event("fail"))
        assert [delta["Cart"] for _, delta in screen.deltas] == [
            {"count": 1},
            {"items": {"tea": 1}},
            {"count": 0, "items": {}},
        ]

    async def test_nothing_is_told_of_a_handler_that_fails_before_it_yields(
        self, registry: RegistrationContext, processor: EventProcessor, screen: Screen
    ) -> None:
        @registry.handler
        def fail(cart: Cart) -> None:
            cart.count = 1
            raise TroubleError

        with pytest.raises(TroubleError):
            await processor.enqueue_nowait("u", Event("fail"))
        assert screen.deltas == []

    async def test_after_a_commit_that_may_have_been_done_the_client_is_told_what_is_stored(
        self,
        registry: RegistrationContext,
        processor: EventProcessor,
        screen: Screen,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What was told in between is taken back or stands, as the store has it."""

        @registry.handler
        def change(cart: Cart) -> Iterator[None]:
            cart.count = 1
            yield
            cart.items["tea"] = 1

        async def others(*tokens: Any) -> tuple[Cart, ...]:
            return (Cart({"coffee": 1}, 5),)

        def uncertain(*arguments: Any, **options: Any) -> Any:
            modification = modify(*arguments, **options)
            leave = type(modification).__aexit__

            class Uncertain:
                async def __aenter__(self) -> Any:
                    self.state = await modification.__aenter__()
                    self.grant = modification.grant
                    return self.state

                async def __aexit__(self, *exc: object) -> None:
                    await leave(modification, *exc)
                    raise CommitUncertainError("who knows", lock_key="u")

            return Uncertain()

        modify = processor.manager.modify_state
        monkeypatch.setattr(processor.manager, "modify_state", uncertain)
        monkeypatch.setattr(processor.manager, "get_states", others)
        with pytest.raises(CommitUncertainError):
            await processor.enqueue_nowait("u", Event("change"))
        assert [delta["Cart"] for _, delta in screen.deltas] == [
            {"count": 1},
            {"items": {"coffee": 1}, "count": 5},
        ]

    async def test_a_key_that_is_gone_is_told_as_removed(
        self, registry: RegistrationContext, processor: EventProcessor, screen: Screen
    ) -> None:
        registry.state(dict, name="table")

        @registry.handler
        def put(table: dict, key: str) -> None:  # type: ignore[type-arg]
            table.clear()
            table[key] = [1]
            table["_own"] = key

        for key in "ab":
            await processor.enqueue_nowait("u", Event("put", {"key": key}))
        assert screen.deltas == [
            ("u", {"table": {"a": [1]}}),
            ("u", {"table": {"b": [1], "a": REMOVED}}),
        ]
        assert await processor.snapshot("u", dict) == {"table": {"b": [1]}}

    async def test_two_classes_of_one_name_are_not_told_as_one(
        self, registry: RegistrationContext, processor: EventProcessor, screen: Screen
    ) -> None:
        """Not of those either that nobody registered; that they were told registers neither."""

        @dataclass
        class Profile:
            name: str = ""

        namesake = globals()["Profile"]

        @registry.handler
        async def change(ctx: EventContext, classes: Any) -> None:
            async with ctx.modify(*classes):
                pass

        with pytest.raises(EventHandlerError, match="'Profile' is the name of another"):
            await processor.enqueue_nowait("u", Event("change", {"classes": (Profile, namesake)}))
        with pytest.raises(EventHandlerError, match="'Profile' is the name of another"):
            await processor.snapshot("u", namesake)
        assert set(registry.states) == set()
        registry.state(namesake, name="other")
        await processor.enqueue_nowait("u", Event("change", {"classes": (Profile, namesake)}))
        assert await processor.snapshot("u", Profile, namesake) == {
            "Profile": {"name": ""},
            "other": {"name": ""},
        }
        await processor.snapshot("u", list)

        @registry.handler
        def take(profiles: list) -> None: ...  # type: ignore[type-arg]

        assert registry.handlers["take"].states == {}
        assert set(registry.states) == {"other"}
        registry.fork().payload(Profile)
        registry.state(Profile)

    async def test_a_stream_is_told_the_same(
        self, registry: RegistrationContext, processor: EventProcessor, screen: Screen
    ) -> None:
        @registry.handler
        def change(cart: Cart) -> Iterator[None]:
            for _ in range(3):
                cart.count += 1
                yield

        stream = processor.enqueue_stream_delta("u", Event("change"))
        async with aclosing(stream):
            assert [delta async for delta in stream] == [
                {"Cart": {"count": count}} for count in (1, 2, 3)
            ]
        assert screen.deltas == []

    async def test_a_delta_is_json_for_a_browser(
        self, registry: RegistrationContext, processor: EventProcessor, screen: Screen
    ) -> None:
        """Of states whose values have a form in JSON."""

        @registry.handler
        def fill(state: Typed) -> None:
            state.count = 1
            state.tags = {1}
            state.items = [Item("a")]
            state.prices = {"tea": 2}
            state.best = Item("b", 3)
            state.color = Color.BLUE
            state.when = datetime(2026, 1, 2, tzinfo=UTC)

        await processor.enqueue_nowait("u", Event("fill"))
        ((_, delta),) = screen.deltas
        told = msgspec.json.encode(delta)
        assert msgspec.json.decode(told) == {
            "Typed": {
                "count": 1,
                "tags": [1],
                "items": [{"sku": "a", "count": 0}],
                "prices": {"tea": 2},
                "best": {"sku": "b", "count": 3},
                "color": "blue",
                "when": "2026-01-02T00:00:00Z",
            }
        }
        told = msgspec.json.encode({"table": {"a": REMOVED}}, enc_hook=lambda value: None)
        assert told == b'{"table":{"a":null}}'

    async def test_a_snapshot_has_every_field_of_every_state_asked_for(
        self, registry: RegistrationContext, processor: EventProcessor
    ) -> None:
        registry.state(Cart, name="cart")
        async with processor.manager.modify_state(StateToken("u", Cart)) as cart:
            cart.items["tea"] = 1
        snapshot = await processor.snapshot("u", Cart, Profile)
        assert snapshot == {"cart": {"items": {"tea": 1}, "count": 0}, "Profile": {"name": ""}}
        wreck([dict(fields) for fields in snapshot.values()])
        assert (await processor.snapshot("u", Cart))["cart"]["items"] == {"tea": 1}
        assert not await processor.manager.has_state(StateToken("u", Profile))
